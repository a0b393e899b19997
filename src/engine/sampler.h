// SPDX-License-Identifier: Apache-2.0
// Sampler: logits to one token, as a pure function of (logits, parameters, output index).
//
// Order: temperature, top_k, top_p, min_p. Ties in the logits go to the lower id. The draw uses a
// number mixed from the seed and the output index alone, so it does not depend on what else runs.
// Threading: engine thread only. Memory: scratch for the vocabulary is reserved by the constructor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace kvrm {

struct Sampled {
  std::int32_t token = -1;  // -1: the logits are not all finite
  float logprob = 0.0f;     // ln softmax(logits)[token], before temperature and truncation
};

class Sampler {
 public:
  explicit Sampler(std::uint32_t vocab_size);
  // `output_idx`: how many output tokens came before. Requires: logits.size() == vocab_size.
  Sampled Sample(std::span<const float> logits, const SamplingParams& params,
                 std::uint32_t output_idx) noexcept;

 private:
  struct Candidate {
    float logit;
    std::int32_t token;
  };
  std::int32_t Draw(std::span<const float> logits, const SamplingParams& params, float max_logit,
                    std::uint32_t output_idx) noexcept;
  std::vector<Candidate> candidates_;  // [vocab]
};

// ln softmax(logits)[token], summed in double in the order of ids. Logits must be finite.
float LogProb(std::span<const float> logits, std::int32_t token) noexcept;

}  // namespace kvrm
