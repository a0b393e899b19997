// SPDX-License-Identifier: Apache-2.0
// What truncation leaves of a vocabulary, and where in its order a running weight is reached.
//
// The order is by logit, descending, ties by the lower id. Candidates are put in order by sorting,
// which is for few. A share of the whole vocabulary is looked for in a WeightHistogram first, and
// then among the candidates of one bucket.
//
// Threading: one thread. Memory: reserved by the constructors.
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

// low <= logit < high
struct LogitRange {
  float low = 0.0f;
  float high = 0.0f;
};

// Which place a running weight has reached.
enum class Reach : std::uint8_t { kAtLeast, kMoreThan };

class Candidates {
 public:
  // 16 bytes a token.
  Candidates(std::uint32_t vocab_size, const CpuKernels& kernels);

  void Start(const LogitWeighting& weighting) noexcept;
  // Appends what is in range, in the order of ids. A token is added once.
  void Add(std::span<const float> logits, const LogitStats& stats, LogitRange range) noexcept;
  std::size_t count() const noexcept { return count_; }
  // Requires: i < count().
  std::int32_t token(std::size_t i) const noexcept {
    return static_cast<std::int32_t>(keys_[i] & 0xffffffffu);
  }
  // Puts them in order and leaves the first `n`. Requires: n > 0.
  void Rank(std::size_t n) noexcept;
  // Of all, summed as they are.
  double Weight() noexcept;

  struct Place {
    std::uint64_t key = 0;  // ascends in order
    double weight = 0;      // of all up to and including this one
    std::int32_t token() const noexcept { return static_cast<std::int32_t>(key & 0xffffffffu); }
  };
  // The first, as they are, at which the running weight reaches `target`; if there is none the
  // last. Requires: Weight was called after the last change, count() > 0.
  Place Find(double target, Reach reach) const noexcept;

 private:
  const CpuKernels& kernels_;
  LogitWeighting weighting_;
  std::size_t count_ = 0;
  std::vector<std::uint32_t> ids_;   // [vocab] scratch of Add
  std::vector<std::uint64_t> keys_;  // [vocab]
  std::vector<float> weights_;       // [vocab]
};

// Weights of tokens by how far their logits lie below the greatest: a thirty-second of a
// temperature a bucket, in the last one all that is further.
class WeightHistogram {
 public:
  static constexpr std::size_t kNumBuckets = 1024;

  // 4 bytes a token.
  WeightHistogram(std::uint32_t vocab_size, const CpuKernels& kernels);

  void Start(const LogitWeighting& weighting) noexcept;
  // A token is added once.
  void Add(std::span<const float> logits, const LogitStats& stats, LogitRange range) noexcept;

  struct Bucket {
    std::size_t number = 0;
    double before = 0;  // weight of the buckets before it
  };
  // The first at which the running weight reaches `target`; if there is none the last with a
  // weight.
  Bucket Find(double target, Reach reach) const noexcept;
  // Of the buckets above that of `logit`.
  double WeightAbove(float logit) const noexcept;
  double Weight() const noexcept;
  // The bucket's logits are those in [LeastOf(bucket), LeastOf(bucket - 1)).
  float LeastOf(std::size_t bucket) const noexcept;

 private:
  // Never rises with the logit.
  std::uint32_t BucketOf(float logit) const noexcept {
    const float below = (weighting_.greatest - logit) * buckets_per_unit_;
    constexpr auto kLast = static_cast<float>(kNumBuckets - 1);
    return static_cast<std::uint32_t>(static_cast<std::int32_t>(below < kLast ? below : kLast));
  }

  const CpuKernels& kernels_;
  LogitWeighting weighting_;
  float buckets_per_unit_ = 0;
  std::array<double, kNumBuckets> weights_ = {};
  std::vector<std::uint32_t> ids_;  // [vocab] scratch of Add
};

// Floats as integers that ascend with them (-0 as 0), and back.
std::uint32_t OrdinalOf(float x) noexcept;
float OfOrdinal(std::uint32_t ordinal) noexcept;

// The least float in [low, high] for which `holds`, which holds at `high` and, wherever it holds,
// above.
template <typename Predicate>
float LeastThat(float low, float high, const Predicate& holds) noexcept {
  std::uint32_t begin = OrdinalOf(low);
  std::uint32_t end = OrdinalOf(high);
  while (begin < end) {
    const std::uint32_t middle = begin + (end - begin) / 2;
    if (holds(OfOrdinal(middle)))
      end = middle;
    else
      begin = middle + 1;
  }
  return OfOrdinal(end);
}

}  // namespace kvrm
