// SPDX-License-Identifier: Apache-2.0
// LogitStats: what an executor knows of one sample's logits by chunks of the vocabulary, so that a
// sampler need not go over all of them.
//
// Threading: plain data, as valid as the logits it is of (exec/executor.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace kvrm {

constexpr std::uint32_t NumLogitChunks(std::uint32_t vocab_size) {
  return (vocab_size + kLogitChunk - 1) / kLogitChunk;
}

// Chunk c is of ids [c * kLogitChunk, (c + 1) * kLogitChunk), the last one up to the vocabulary's
// end. What CpuKernels::logit_stats gives.
struct LogitStats {
  std::span<const float> maxima;  // [NumLogitChunks] the greatest logit of the chunk
  std::span<const float> sums;    // of e^(logit - maximum); NaN: not all finite
};

// The same for executors without kernels of their own: the sum in plain C++, chunk by chunk.
// Memory: reserved by the constructor.
class PlainLogitStats {
 public:
  PlainLogitStats(std::uint32_t max_samples, std::uint32_t vocab_size);
  // Requires: sample < max_samples, logits.size() == vocab_size.
  LogitStats Compute(std::uint32_t sample, std::span<const float> logits) noexcept;
  LogitStats Of(std::uint32_t sample) const noexcept;

 private:
  std::uint32_t num_chunks_;
  std::vector<float> maxima_;  // [max_samples][num_chunks]
  std::vector<float> sums_;
};

}  // namespace kvrm
