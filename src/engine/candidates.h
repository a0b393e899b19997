// SPDX-License-Identifier: Apache-2.0
// Candidates: the tokens that truncation has left, and where in their order a weight is reached.
//
// The order is by logit, descending, ties by the lower id. Of many candidates it is never made: a
// running weight is looked for in a histogram, then among what fell into one bucket.
//
// Threading: one thread. Memory: reserved by the constructor for a whole vocabulary, 28 bytes a
// token.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "exec/logit_stats.h"

namespace kvrm {

// Weights are e^((logit - greatest) * scale). 0 < scale < Inf.
struct LogitWeighting {
  float greatest = 0.0f;
  float scale = 1.0f;
};

// weights[i] of logits[i].
void WeighLogits(const CpuKernels& kernels, const LogitWeighting& weighting,
                 std::span<const float> logits, float* weights) noexcept;

class Candidates {
 public:
  Candidates(std::uint32_t vocab_size, const CpuKernels& kernels);

  void Start(const LogitWeighting& weighting) noexcept;
  // Appends low <= logit < high, in the order of ids. A token is added once.
  void Add(std::span<const float> logits, const LogitStats& stats, float low, float high) noexcept;
  std::size_t count() const noexcept { return count_; }
  // Of all, summed in the order in which they were added.
  double weight() const noexcept { return weight_; }
  // Leaves the first `n` in order. Requires: n > 0.
  void Keep(std::size_t n) noexcept;

  enum class Reach : std::uint8_t { kAtLeast, kMoreThan };
  struct Place {
    std::uint64_t key = 0;  // ascends in order
    double weight = 0;      // of all up to and including this one
    std::int32_t token() const noexcept { return static_cast<std::int32_t>(key & 0xffffffffu); }
  };
  // The first in order at which the running weight is at least, or more than, `target`; if there
  // is none the last. Requires: count() > 0.
  Place Find(double target, Reach reach) noexcept;
  // The same over the candidates as they were added. Keep has not been called.
  std::int32_t FindAsAdded(double target) noexcept;

 private:
  static constexpr std::size_t kNumBuckets = 512;
  // A part of the candidates, its weights cut into buckets of equal widths by logit.
  struct Histogram {
    double origin = 0;     // greatest logit
    double scale = 0;      // buckets per unit below it; 0: all logits are equal
    std::size_t last = 0;  // bucket that is not empty
    std::array<double, kNumBuckets> weights;
    std::size_t BucketOf(std::uint64_t key) const noexcept;
  };

  void Weigh(std::span<const std::uint64_t> keys) noexcept;
  void Count(std::span<const std::uint64_t> keys, Histogram* histogram) noexcept;
  Place Walk(std::span<std::uint64_t> keys, double before, double target, Reach reach) noexcept;

  const CpuKernels& kernels_;
  LogitWeighting weighting_;
  std::size_t count_ = 0;
  double weight_ = 0;
  bool counted_ = false;             // histogram_ is of the candidates as they are
  Histogram histogram_;              // of all
  Histogram part_histogram_;         // of one bucket's
  std::vector<std::uint32_t> ids_;   // [vocab] scratch of Add
  std::vector<std::uint64_t> keys_;  // [vocab]
  std::vector<std::uint64_t> part_;  // [vocab] of one bucket
  std::vector<float> weights_;       // [vocab] scratch: of the keys last weighed
};

}  // namespace kvrm
