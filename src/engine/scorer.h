// SPDX-License-Identifier: Apache-2.0
// Scorer: the logits of every position of a given text, for parity checks and perplexity.
//
// Runs the same pager, descriptors and executor as the engine, with one row whose every token is
// sampled. Threading: one thread. Memory: reserved by the constructor.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "device/host_device.h"
#include "engine/step_loop.h"
#include "model/weights.h"

namespace kvrm {

struct ScorerOptions {
  std::uint32_t max_context = 0;  // longest text
  std::uint32_t chunk = 64;       // tokens per step
  std::uint32_t num_threads = 0;  // 0: all cores
  std::string kernels = {};       // as EngineOptions
  DType kv_dtype = DType::kF16;
  std::function<void(std::uint64_t done, std::uint64_t total)> load_progress = {};
};

class Scorer {
 public:
  using Sink = std::function<void(std::uint32_t position, std::span<const float> logits)>;

  // Throws StartError. `model` outlives the scorer.
  Scorer(const Model& model, const ScorerOptions& options);

  // Calls `sink` once for each token, in order, with the logits [vocab] after it. Every call starts
  // from an empty context. Requires: 1 <= tokens.size() <= max_context, ids < vocab.
  void Score(std::span<const std::int32_t> tokens, const Sink& sink);

 private:
  const std::uint32_t chunk_;
  HostDevice device_;
  StepLoop loop_;
};

}  // namespace kvrm
