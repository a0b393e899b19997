// SPDX-License-Identifier: Apache-2.0
// Sequence: one request's mutable state inside the engine.
//
//   [0, num_computed)               in the cache
//   [num_computed, tokens.size())   known, to be computed; the last one's logits are sampled
//
// While decoding exactly one token is to be computed. After preemption num_computed is 0 again and
// what had been computed is computed once more, output tokens included.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "step/ids.h"

namespace kvrm {

struct Sequence {
  RequestId id{};
  SamplingParams sampling;
  std::vector<std::int32_t> stop_ids;
  std::vector<std::int32_t> tokens;  // prompt, then output; capacity for all of max_length
  std::uint32_t num_prompt_tokens = 0;
  std::uint32_t max_length = 0;  // prompt and output together
  std::uint32_t num_computed = 0;
  std::uint32_t num_ever_computed = 0;  // the high-water mark: beyond it nothing is recomputed
  SeqId seq{};                          // valid while running

  std::uint32_t length() const { return static_cast<std::uint32_t>(tokens.size()); }
  std::uint32_t num_to_compute() const { return length() - num_computed; }
  std::uint32_t num_output_tokens() const { return length() - num_prompt_tokens; }
};

}  // namespace kvrm
