// SPDX-License-Identifier: Apache-2.0
// LogHistogram: counts of whole numbers in buckets whose width grows with the value, as HDR
// histograms have them.
//
// Below 256 a bucket is one value; above, every power of two is cut into 256 equal ones. What is
// said of a value is the middle of its bucket, so it is off by at most 1/512 of the value. Count,
// sum, sum of squares and maximum are exact, but for the rounding of a double.
//
// Threading: one thread. Memory: as many buckets as reach to the largest value, at most 115 KiB.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace kvrm {

class LogHistogram {
 public:
  static constexpr std::uint32_t kBits = 8;  // of the place inside a power of two
  static constexpr std::uint32_t kMaxBuckets = (64 - kBits) << kBits;

  void Add(std::uint64_t value) {
    const std::uint32_t bucket = BucketOf(value);
    if (bucket >= counts_.size()) counts_.resize(bucket + 1, 0);
    ++counts_[bucket];
    ++count_;
    const double number = static_cast<double>(value);
    sum_ += number;
    squares_ += number * number;
    max_ = std::max(max_, value);
  }

  std::uint64_t count() const { return count_; }
  double sum() const { return sum_; }
  double squares() const { return squares_; }
  std::uint64_t max() const { return max_; }
  std::span<const std::uint64_t> counts() const { return counts_; }

  // As it was written. False, and nothing changes, when the counts cannot belong to the rest.
  struct Totals {
    double sum = 0.0;
    double squares = 0.0;
    std::uint64_t max = 0;
  };
  bool Restore(std::vector<std::uint64_t> counts, const Totals& totals);

  // numpy's percentile over the middles of the buckets, none above the maximum. Requires: not
  // empty; 0 <= share <= 1.
  double Quantile(double share) const;

  // Below 2^62.
  static std::uint32_t BucketOf(std::uint64_t value) {
    if (value >> kBits == 0) return static_cast<std::uint32_t>(value);
    const auto shift = static_cast<std::uint32_t>(std::bit_width(value)) - kBits - 1;
    return (shift << kBits) + static_cast<std::uint32_t>(value >> shift);
  }
  static double Middle(std::uint32_t bucket);

 private:
  double ValueAt(std::uint64_t rank) const;

  std::vector<std::uint64_t> counts_;
  std::uint64_t count_ = 0;
  double sum_ = 0.0;
  double squares_ = 0.0;
  std::uint64_t max_ = 0;
};

}  // namespace kvrm
