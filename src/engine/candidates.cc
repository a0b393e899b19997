// SPDX-License-Identifier: Apache-2.0
#include "engine/candidates.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr float kMaxFloat = std::numeric_limits<float>::max();
constexpr float kBucketsPerTemperature = 32;

bool Reaches(double weight, double target, Reach reach) {
  return reach == Reach::kAtLeast ? weight >= target : weight > target;
}

// The ids of low <= logit < high, ascending, from the chunks that may have any.
std::uint32_t SelectIds(const CpuKernels& kernels, std::span<const float> logits,
                        const LogitStats& stats, LogitRange range, std::span<std::uint32_t> ids) {
  const auto vocab_size = static_cast<std::uint32_t>(logits.size());
  std::uint32_t count = 0;
  for (std::uint32_t chunk = 0; chunk < stats.maxima.size(); ++chunk) {
    if (stats.maxima[chunk] < range.low) continue;
    const std::uint32_t begin = chunk * kLogitChunk;
    count += kernels.select({.x = logits.data(),
                             .begin = begin,
                             .end = std::min(begin + kLogitChunk, vocab_size),
                             .low = range.low,
                             .high = range.high},
                            &ids[count]);
  }
  return count;
}

}  // namespace

std::uint32_t OrdinalOf(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

float OfOrdinal(std::uint32_t ordinal) noexcept {
  return std::bit_cast<float>((ordinal >> 31) != 0 ? ordinal & 0x7fffffffu : ~ordinal);
}

void WeighLogits(const CpuKernels& kernels, const LogitWeighting& weighting,
                 std::span<const float> logits, float* weights) noexcept {
  for (std::size_t i = 0; i < logits.size(); ++i)
    weights[i] = (logits[i] - weighting.greatest) * weighting.scale;
  kernels.exp(weights, weights, static_cast<std::uint32_t>(logits.size()));
}

Candidates::Candidates(std::uint32_t vocab_size, const CpuKernels& kernels)
    : kernels_(kernels), ids_(vocab_size), keys_(vocab_size), weights_(vocab_size) {}

void Candidates::Start(const LogitWeighting& weighting) noexcept {
  weighting_ = weighting;
  count_ = 0;
}

void Candidates::Add(std::span<const float> logits, const LogitStats& stats,
                     LogitRange range) noexcept {
  const std::uint32_t passed = SelectIds(kernels_, logits, stats, range, ids_);
  for (std::uint32_t i = 0; i < passed; ++i)
    keys_[count_++] = std::uint64_t{~OrdinalOf(logits[ids_[i]])} << 32 | ids_[i];
}

void Candidates::Rank(std::size_t n) noexcept {
  CHECK(n > 0);
  const auto begin = keys_.begin();
  const auto end = begin + static_cast<std::ptrdiff_t>(count_);
  if (n < count_) {
    const auto rest = begin + static_cast<std::ptrdiff_t>(n);
    std::nth_element(begin, rest, end);
    count_ = n;
    std::sort(begin, rest);
  } else if (!std::is_sorted(begin, end)) {  // Equal logits, however many, are added in order.
    std::sort(begin, end);
  }
}

double Candidates::Weight() noexcept {
  for (std::size_t i = 0; i < count_; ++i)
    weights_[i] = OfOrdinal(~static_cast<std::uint32_t>(keys_[i] >> 32));
  WeighLogits(kernels_, weighting_, std::span(weights_).first(count_), weights_.data());
  double weight = 0;
  for (std::size_t i = 0; i < count_; ++i)
    weight += static_cast<double>(weights_[i]);
  return weight;
}

Candidates::Place Candidates::Find(double target, Reach reach) const noexcept {
  CHECK(count_ > 0);
  std::size_t i = 0;
  double weight = static_cast<double>(weights_[0]);
  while (i + 1 < count_ && !Reaches(weight, target, reach))
    weight += static_cast<double>(weights_[++i]);
  return {.key = keys_[i], .weight = weight};
}

WeightHistogram::WeightHistogram(std::uint32_t vocab_size, const CpuKernels& kernels)
    : kernels_(kernels), ids_(vocab_size) {}

void WeightHistogram::Start(const LogitWeighting& weighting) noexcept {
  weighting_ = weighting;
  buckets_per_unit_ = std::min(weighting.scale * kBucketsPerTemperature, kMaxFloat);
  weights_.fill(0);
}

void WeightHistogram::Add(std::span<const float> logits, const LogitStats& stats,
                          LogitRange range) noexcept {
  const std::uint32_t passed = SelectIds(kernels_, logits, stats, range, ids_);
  for (std::uint32_t begin = 0; begin < passed; begin += kLogitChunk) {
    const std::uint32_t count = std::min(passed - begin, kLogitChunk);
    // Loops of fixed length, which the compiler makes into vectors.
    float own[kLogitChunk];
    float weights[kLogitChunk];
    std::uint32_t buckets[kLogitChunk];
    for (std::uint32_t i = 0; i < count; ++i)
      own[i] = logits[ids_[begin + i]];
    std::fill(own + count, std::end(own), weighting_.greatest);
    for (std::uint32_t i = 0; i < kLogitChunk; ++i)
      weights[i] = (own[i] - weighting_.greatest) * weighting_.scale;
    for (std::uint32_t i = 0; i < kLogitChunk; ++i)
      buckets[i] = BucketOf(own[i]);
    kernels_.exp(weights, weights, kLogitChunk);
    for (std::uint32_t i = 0; i < count; ++i)
      weights_[buckets[i]] += static_cast<double>(weights[i]);
  }
}

WeightHistogram::Bucket WeightHistogram::Find(double target, Reach reach) const noexcept {
  Bucket last;
  double before = 0;
  for (std::size_t number = 0; number < kNumBuckets; ++number) {
    if (weights_[number] <= 0) continue;
    last = {.number = number, .before = before};
    before += weights_[number];
    if (Reaches(before, target, reach)) break;
  }
  return last;
}

double WeightHistogram::WeightAbove(float logit) const noexcept {
  double weight = 0;
  for (std::uint32_t number = 0; number < BucketOf(logit); ++number)
    weight += weights_[number];
  return weight;
}

double WeightHistogram::Weight() const noexcept {
  double weight = 0;
  for (const double own : weights_)
    weight += own;
  return weight;
}

float WeightHistogram::LeastOf(std::size_t bucket) const noexcept {
  return LeastThat(-kMaxFloat, weighting_.greatest,
                   [&](float logit) { return BucketOf(logit) <= bucket; });
}

}  // namespace kvrm
