// SPDX-License-Identifier: Apache-2.0
#include "exec/logit_stats.h"

#include "base/check.h"

namespace kvrm {

PlainLogitStats::PlainLogitStats(std::uint32_t max_samples, std::uint32_t vocab_size)
    : num_chunks_(NumLogitChunks(vocab_size)),
      maxima_(std::size_t{max_samples} * num_chunks_),
      sums_(maxima_.size()) {}

LogitStats PlainLogitStats::Compute(std::uint32_t sample, std::span<const float> logits) noexcept {
  const auto vocab_size = static_cast<std::uint32_t>(logits.size());
  const std::size_t at = std::size_t{sample} * num_chunks_;
  CHECK(NumLogitChunks(vocab_size) == num_chunks_ && at < maxima_.size());
  kScalarKernels.logit_stats(logits.data(), vocab_size, &maxima_[at], &sums_[at]);
  return Of(sample);
}

LogitStats PlainLogitStats::Of(std::uint32_t sample) const noexcept {
  const std::size_t at = std::size_t{sample} * num_chunks_;
  CHECK(at < maxima_.size());
  return {.maxima = std::span(maxima_).subspan(at, num_chunks_),
          .sums = std::span(sums_).subspan(at, num_chunks_)};
}

}  // namespace kvrm
