// SPDX-License-Identifier: Apache-2.0
#include "engine/candidates.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr std::size_t kSortAtMost = 512;
constexpr std::uint32_t kSign = 0x80000000u;

// The logit's bits so turned that they descend with it, over the id.
std::uint64_t KeyOf(float logit, std::uint32_t id) {
  const auto bits = std::bit_cast<std::uint32_t>(logit + 0.0f);  // -0 is 0
  const std::uint32_t descending = (bits & kSign) != 0 ? bits : ~(bits | kSign);
  return std::uint64_t{descending} << 32 | id;
}

float LogitOf(std::uint64_t key) {
  const auto descending = static_cast<std::uint32_t>(key >> 32);
  return std::bit_cast<float>((descending & kSign) != 0 ? descending : ~(descending | kSign));
}

bool Reaches(double weight, double target, Candidates::Reach reach) {
  return reach == Candidates::Reach::kAtLeast ? weight >= target : weight > target;
}

}  // namespace

void WeighLogits(const CpuKernels& kernels, const LogitWeighting& weighting,
                 std::span<const float> logits, float* weights) noexcept {
  for (std::size_t i = 0; i < logits.size(); ++i)
    weights[i] = (logits[i] - weighting.greatest) * weighting.scale;
  kernels.exp(weights, weights, static_cast<std::uint32_t>(logits.size()));
}

Candidates::Candidates(std::uint32_t vocab_size, const CpuKernels& kernels)
    : kernels_(kernels),
      ids_(vocab_size),
      keys_(vocab_size),
      part_(vocab_size),
      weights_(vocab_size) {}

void Candidates::Start(const LogitWeighting& weighting) noexcept {
  weighting_ = weighting;
  count_ = 0;
  weight_ = 0;
  counted_ = false;
}

void Candidates::Add(std::span<const float> logits, const LogitStats& stats, float low,
                     float high) noexcept {
  const std::size_t first = count_;
  const auto vocab_size = static_cast<std::uint32_t>(logits.size());
  for (std::uint32_t chunk = 0; chunk < stats.maxima.size(); ++chunk) {
    if (stats.maxima[chunk] < low) continue;
    const std::uint32_t begin = chunk * kLogitChunk;
    const std::uint32_t passed = kernels_.select({.x = logits.data(),
                                                  .begin = begin,
                                                  .end = std::min(begin + kLogitChunk, vocab_size),
                                                  .low = low,
                                                  .high = high},
                                                 ids_.data());
    for (std::uint32_t i = 0; i < passed; ++i)
      keys_[count_++] = KeyOf(logits[ids_[i]], ids_[i]);
  }
  Weigh(std::span(keys_).subspan(first, count_ - first));
  for (std::size_t i = 0; i < count_ - first; ++i)
    weight_ += static_cast<double>(weights_[i]);
  counted_ = false;
}

void Candidates::Keep(std::size_t n) noexcept {
  CHECK(n > 0);
  if (n >= count_) return;
  const auto begin = keys_.begin();
  std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(n),
                   begin + static_cast<std::ptrdiff_t>(count_));
  count_ = n;
  counted_ = false;
  Weigh(std::span(keys_).first(n));
  weight_ = 0;
  for (std::size_t i = 0; i < n; ++i)
    weight_ += static_cast<double>(weights_[i]);
}

void Candidates::Weigh(std::span<const std::uint64_t> keys) noexcept {
  for (std::size_t i = 0; i < keys.size(); ++i)
    weights_[i] = LogitOf(keys[i]);
  WeighLogits(kernels_, weighting_, std::span(weights_).first(keys.size()), weights_.data());
}

std::size_t Candidates::Histogram::BucketOf(std::uint64_t key) const noexcept {
  return static_cast<std::size_t>((origin - static_cast<double>(LogitOf(key))) * scale);
}

void Candidates::Count(std::span<const std::uint64_t> keys, Histogram* histogram) noexcept {
  std::uint64_t first = keys[0];
  std::uint64_t last = keys[0];
  for (const std::uint64_t key : keys) {
    first = std::min(first, key);
    last = std::max(last, key);
  }
  histogram->origin = static_cast<double>(LogitOf(first));
  // In double no difference of two floats overflows or vanishes.
  const double width = histogram->origin - static_cast<double>(LogitOf(last));
  histogram->scale = width > 0 ? (kNumBuckets - 1) / width : 0;
  histogram->last = histogram->BucketOf(last);
  histogram->weights.fill(0);
  Weigh(keys);
  for (std::size_t i = 0; i < keys.size(); ++i)
    histogram->weights[histogram->BucketOf(keys[i])] += static_cast<double>(weights_[i]);
}

Candidates::Place Candidates::Find(double target, Reach reach) noexcept {
  CHECK(count_ > 0);
  std::span<std::uint64_t> keys = std::span(keys_).first(count_);
  if (keys.size() > kSortAtMost && !counted_) {
    Count(keys, &histogram_);
    counted_ = true;
  }
  const Histogram* histogram = &histogram_;
  double before = 0;
  while (keys.size() > kSortAtMost && histogram->scale > 0) {
    std::size_t bucket = 0;
    while (bucket < histogram->last && !Reaches(before + histogram->weights[bucket], target, reach))
      before += histogram->weights[bucket++];
    // What is written of `part_` never overtakes what is read of it.
    std::size_t count = 0;
    for (const std::uint64_t key : keys) {
      if (histogram->BucketOf(key) == bucket) part_[count++] = key;
    }
    keys = std::span(part_).first(count);
    if (count <= kSortAtMost) break;
    Count(keys, &part_histogram_);
    histogram = &part_histogram_;
  }
  return Walk(keys, before, target, reach);
}

Candidates::Place Candidates::Walk(std::span<std::uint64_t> keys, double before, double target,
                                   Reach reach) noexcept {
  // Equal logits, however many, are in order as they were added.
  if (!std::is_sorted(keys.begin(), keys.end())) std::sort(keys.begin(), keys.end());
  Weigh(keys);
  std::size_t i = 0;
  double weight = before + static_cast<double>(weights_[0]);
  while (i + 1 < keys.size() && !Reaches(weight, target, reach))
    weight += static_cast<double>(weights_[++i]);
  return {.key = keys[i], .weight = weight};
}

std::int32_t Candidates::FindAsAdded(double target) noexcept {
  CHECK(count_ > 0);
  Weigh(std::span(keys_).first(count_));
  std::size_t i = 0;
  double weight = static_cast<double>(weights_[0]);
  while (i + 1 < count_ && !Reaches(weight, target, Reach::kMoreThan))
    weight += static_cast<double>(weights_[++i]);
  return Place{.key = keys_[i]}.token();
}

}  // namespace kvrm
