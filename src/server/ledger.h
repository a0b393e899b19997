// SPDX-License-Identifier: Apache-2.0
// The ledger of memory and movement: GET /v1/kv/ledger (JSON) and GET /metrics (Prometheus text).
//
// Every figure is exact as of the last step; live <= mapped <= reserved, in every tier.
// Threading: pure functions of a snapshot.
#pragma once

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
};

std::string LedgerBody(const EngineLedger& ledger);
// Text exposition format 0.0.4.
std::string MetricsText(const EngineLedger& ledger);
inline constexpr const char* kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace kvrm
