// SPDX-License-Identifier: Apache-2.0
// The ledger of memory and movement: GET /v1/kv/ledger (JSON) and GET /metrics (Prometheus text).
//
// Every figure is exact as of the last step; live <= mapped <= reserved, in every tier.
// Threading: pure functions of a snapshot.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace kvrm {

// What an engine says of itself.
struct EngineLedger {
  EngineStats engine;
  KvStats kv;
  std::vector<ReservedBytes> reserved;
  std::uint64_t memory_budget = 0;  // 0: none
  std::string view = {};
  std::string placement = {};
  std::uint32_t block_tokens = 0;
  std::vector<NamedHistogram> histograms = {};
  std::array<std::uint64_t, kNumFinishReasons> num_ended = {};  // by FinishReason
  std::uint64_t num_rejected_requests = 0;
  std::uint64_t num_rejected_tokens = 0;
};

// Under which names metrics are given.
struct MetricsNames {
  bool vllm = false;            // those of vLLM beside our own
  std::string model_name = {};  // the value of their label
};

std::string LedgerBody(const EngineLedger& ledger);
// Text exposition format 0.0.4.
std::string MetricsText(const EngineLedger& ledger, const MetricsNames& names = {});
inline constexpr const char* kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace kvrm
