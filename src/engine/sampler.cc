// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace {

constexpr float kMaxFloat = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kMaxDepth = 110.0;  // Temperatures below the greatest logit that leave no weight.

double DrawUniform(std::uint64_t seed, std::uint32_t output_idx) noexcept {
  return Rng(Mix64(seed) ^ output_idx, "sample").Uniform();
}

double Sum(std::span<const float> values) noexcept {
  double sum = 0;
  for (const float value : values)
    sum += static_cast<double>(value);
  return sum;
}

// In eight lanes: a comparison waits for the one before.
float Greatest(std::span<const float> values) noexcept {
  float lanes[8];
  std::fill(std::begin(lanes), std::end(lanes), values[0]);
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane)
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
  }
  for (; i < values.size(); ++i)
    lanes[0] = std::max(lanes[0], values[i]);
  return *std::max_element(std::begin(lanes), std::end(lanes));
}

// The lowest id of the greatest logit.
std::int32_t LowestGreatest(std::span<const float> logits, const LogitStats& stats,
                            float greatest) noexcept {
  const auto chunk = std::find(stats.maxima.begin(), stats.maxima.end(), greatest);
  const auto begin = logits.begin() + (chunk - stats.maxima.begin()) * std::ptrdiff_t{kLogitChunk};
  return static_cast<std::int32_t>(std::find(begin, logits.end(), greatest) - logits.begin());
}

// The least logit that min_p keeps: whose weight, in double, is at least min_p of the greatest's.
float LeastKept(float greatest, const SamplingParams& params) noexcept {
  if (params.min_p <= 0.0f) return -kMaxFloat;
  return LeastThat(-kMaxFloat, greatest, [&](float logit) {  // whose own weight is 1
    return std::exp(static_cast<double>(logit - greatest) /
                    static_cast<double>(params.temperature)) >= static_cast<double>(params.min_p);
  });
}

// Of a sum of e^(logit - greatest).
float LogProbOf(std::span<const float> logits, std::int32_t token, float greatest,
                double sum) noexcept {
  const double logit = static_cast<double>(logits[static_cast<std::size_t>(token)]);
  return static_cast<float>(logit - (static_cast<double>(greatest) + std::log(sum)));
}

// How many logits are greater.
std::uint32_t NumAbove(std::span<const float> logits, const LogitStats& stats,
                       float logit) noexcept {
  std::uint32_t count = 0;
  for (std::size_t chunk = 0; chunk < stats.maxima.size(); ++chunk) {
    if (stats.maxima[chunk] <= logit) continue;
    const std::size_t begin = chunk * kLogitChunk;
    const std::size_t end = std::min<std::size_t>(begin + kLogitChunk, logits.size());
    for (std::size_t i = begin; i < end; ++i)
      count += logits[i] > logit ? 1u : 0u;
  }
  return count;
}

}  // namespace

float LogProb(std::span<const float> logits, std::int32_t token) noexcept {
  const float greatest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits)
    sum += static_cast<double>(std::exp(logit - greatest));
  return LogProbOf(logits, token, greatest, sum);
}

Sampler::Sampler(std::uint32_t vocab_size, const CpuKernels& kernels)
    : vocab_size_(vocab_size),
      kernels_(kernels),
      chunk_weights_(NumLogitChunks(vocab_size)),
      chunk_scratch_(chunk_weights_.size()),
      candidates_(vocab_size, kernels),
      histogram_(vocab_size, kernels),
      editor_(vocab_size, kernels) {}

Sampled Sampler::Sample(std::span<const float> logits, const LogitStats& stats,
                        const SamplingParams& params, std::uint32_t output_idx) noexcept {
  CHECK(logits.size() == vocab_size_);
  CHECK(stats.maxima.size() == chunk_weights_.size() && stats.sums.size() == chunk_weights_.size());
  const float greatest = Greatest(stats.maxima);
  const double sum = WeighChunks(stats, greatest);
  if (!std::isfinite(sum)) return {};
  const std::int32_t token = Draw(logits, stats, params, output_idx, greatest);
  return {.token = token, .logprob = LogProbOf(logits, token, greatest, sum)};
}

Sampled Sampler::Sample(std::span<const float> logits, const LogitStats& stats,
                        const SamplingParams& params, const LogitEdits& edits) noexcept {
  const auto output_idx = static_cast<std::uint32_t>(edits.output().size());
  if (!LogitEditor::Changes(params, edits)) return Sample(logits, stats, params, output_idx);
  CHECK(logits.size() == vocab_size_);
  CHECK(stats.maxima.size() == chunk_weights_.size() && stats.sums.size() == chunk_weights_.size());
  const float greatest = Greatest(stats.maxima);
  const double sum = WeighChunks(stats, greatest);
  if (!std::isfinite(sum)) return {};
  if (!editor_.Edit(logits, params, edits)) return {.nothing_allowed = true};
  const float greatest_left = Greatest(editor_.stats().maxima);
  WeighChunks(editor_.stats(), greatest_left);
  std::int32_t token = Draw(editor_.logits(), editor_.stats(), params, output_idx, greatest_left);
  // A draw whose rounded target lies beyond all weights ends at the last candidate, which may be a
  // banned one.
  if (editor_.logits()[static_cast<std::size_t>(token)] <= kBannedLogit)
    token = LowestGreatest(editor_.logits(), editor_.stats(), greatest_left);
  return {.token = token, .logprob = LogProbOf(logits, token, greatest, sum)};
}

bool Sampler::Rank(std::span<const float> logits, const LogitStats& stats, std::uint32_t num_top,
                   TopLogprobs* out) noexcept {
  CHECK(logits.size() == vocab_size_ && num_top <= kMaxTopLogprobs);
  const float greatest = Greatest(stats.maxima);
  const double sum = WeighChunks(stats, greatest);
  if (!std::isfinite(sum)) return false;
  out->token.logprob = LogProbOf(logits, out->token.token, greatest, sum);
  out->rank = NumAbove(logits, stats, logits[static_cast<std::size_t>(out->token.token)]) + 1;
  out->num_top = std::min(num_top, vocab_size_);
  if (out->num_top == 0) return true;
  const SamplingParams plain;
  const Input input = {
      .logits = logits, .stats = stats, .params = plain, .weighting = {.greatest = greatest}};
  candidates_.Start(input.weighting);
  AddTop(input, -kMaxFloat, out->num_top);
  candidates_.Rank(out->num_top);
  for (std::uint32_t i = 0; i < out->num_top; ++i) {
    const std::int32_t token = candidates_.token(i);
    out->likeliest[i] = {.token = token, .logprob = LogProbOf(logits, token, greatest, sum)};
  }
  return true;
}

// Requires: chunk_weights_ are those of `stats`.
std::int32_t Sampler::Draw(std::span<const float> logits, const LogitStats& stats,
                           const SamplingParams& params, std::uint32_t output_idx,
                           float greatest) noexcept {
  if (params.temperature <= 0.0f || params.top_k == 1)
    return LowestGreatest(logits, stats, greatest);
  const Input input = {
      .logits = logits,
      .stats = stats,
      .params = params,
      .weighting = {.greatest = greatest, .scale = std::min(1.0f / params.temperature, kMaxFloat)},
      .uniform = DrawUniform(params.seed, output_idx)};
  const bool from_all = params.top_k <= 0 && params.top_p >= 1.0f && params.min_p <= 0.0f;
  return from_all ? DrawFromAll(input) : DrawFromSome(input);
}

// The sum of e^(logit - greatest) over all ids, at temperature 1; not finite if a logit is not.
double Sampler::WeighChunks(const LogitStats& stats, float greatest) noexcept {
  const std::size_t num_chunks = stats.maxima.size();
  WeighLogits(kernels_, {.greatest = greatest}, stats.maxima, chunk_weights_.data());
  for (std::size_t i = 0; i < num_chunks; ++i)
    chunk_weights_[i] *= stats.sums[i];
  return Sum(chunk_weights_);
}

// At the request's temperature.
double Sampler::TotalWeight(const Input& input) noexcept {
  const float scale = input.weighting.scale;
  if (scale < 1.0f || scale > 1.0f) {
    kernels_.logit_weights(input.logits.data(), vocab_size_, input.weighting.greatest, scale,
                           chunk_weights_.data());
  }
  return Sum(chunk_weights_);
}

// In the order of ids.
std::int32_t Sampler::DrawFromAll(const Input& input) noexcept {
  const double target = input.uniform * TotalWeight(input);
  const auto num_chunks = static_cast<std::uint32_t>(chunk_weights_.size());
  std::uint32_t last = 0;  // with a weight: where it ends if rounding leaves a rest
  double before = 0;
  for (std::uint32_t chunk = 0; chunk < num_chunks; ++chunk) {
    const double weight = static_cast<double>(chunk_weights_[chunk]);
    if (before + weight > target) return DrawFromChunk(input, chunk, target - before);
    before += weight;
    if (weight > 0) last = chunk;
  }
  return DrawFromChunk(input, last, static_cast<double>(kInfinity));
}

std::int32_t Sampler::DrawFromChunk(const Input& input, std::uint32_t chunk,
                                    double target) noexcept {
  const std::uint32_t begin = chunk * kLogitChunk;
  const std::uint32_t count = std::min(kLogitChunk, vocab_size_ - begin);
  float weights[kLogitChunk];
  WeighLogits(kernels_, input.weighting, input.logits.subspan(begin, count), weights);
  std::uint32_t last = 0;
  double weight = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    weight += static_cast<double>(weights[i]);
    if (weights[i] > 0) last = i;
    if (weight > target) break;
  }
  return static_cast<std::int32_t>(begin + last);
}

std::int32_t Sampler::DrawFromSome(const Input& input) noexcept {
  const SamplingParams& params = input.params;
  const float floor = LeastKept(input.weighting.greatest, params);
  candidates_.Start(input.weighting);
  if (params.top_k > 0) {
    AddTop(input, floor, std::min(static_cast<std::uint32_t>(params.top_k), vocab_size_));
    candidates_.Rank(static_cast<std::size_t>(params.top_k));
  } else if (params.top_p < 1.0f) {
    return DrawFromShare(input, floor);
  } else {
    candidates_.Add(input.logits, input.stats, {.low = floor, .high = kInfinity});
  }
  // In order after top_k, as a share of it is then taken; else by ids.
  double weight = candidates_.Weight();
  if (params.top_p < 1.0f) {
    weight = candidates_.Find(static_cast<double>(params.top_p) * weight, Reach::kAtLeast).weight;
  }
  return candidates_.Find(input.uniform * weight, Reach::kMoreThan).token();
}

// From the shortest prefix of the order, down to `floor`, that has top_p of the weight.
std::int32_t Sampler::DrawFromShare(const Input& input, float floor) noexcept {
  const bool has_floor = input.params.min_p > 0.0f;
  const double total = has_floor ? 0.0 : TotalWeight(input);
  const double share = static_cast<double>(input.params.top_p);
  histogram_.Start(input.weighting);
  // By falling bounds, until what lies below cannot matter. A floor is taken at once: the total is
  // of all above it.
  LogitRange range = {.low = kInfinity, .high = kInfinity};
  for (double depth = has_floor ? 2 * kMaxDepth : 2.0; range.low > floor; depth *= 1.5) {
    range = {.low = Bound(input, depth, {.low = floor, .high = range.low}), .high = range.low};
    histogram_.Add(input.logits, input.stats, range);
    if (!has_floor && histogram_.WeightAbove(range.low) >= share * total) break;
  }
  const double wanted = share * (has_floor ? histogram_.Weight() : total);
  const Candidates::Place end = FindInShare(input, floor, {wanted, Reach::kAtLeast});
  const Candidates::Place drawn =
      FindInShare(input, floor, {input.uniform * end.weight, Reach::kMoreThan});
  return drawn.key < end.key ? drawn.token() : end.token();
}

// In the order of all that the histogram has, which is nothing below `floor`.
Candidates::Place Sampler::FindInShare(const Input& input, float floor,
                                       const Target& target) noexcept {
  const WeightHistogram::Bucket bucket = histogram_.Find(target.weight, target.reach);
  const float low = std::max(floor, histogram_.LeastOf(bucket.number));
  const float high = bucket.number == 0 ? kInfinity : histogram_.LeastOf(bucket.number - 1);
  candidates_.Start(input.weighting);
  candidates_.Add(input.logits, input.stats, {.low = low, .high = high});
  candidates_.Rank(candidates_.count());
  candidates_.Weight();
  Candidates::Place place = candidates_.Find(target.weight - bucket.before, target.reach);
  place.weight += bucket.before;
  return place;
}

// Adds all candidates above a falling bound, until there are top_k of them or no more.
void Sampler::AddTop(const Input& input, float floor, std::uint32_t top_k) noexcept {
  LogitRange range = {.low = std::max(floor, GreatestChunksBound(input.stats, top_k)),
                      .high = kInfinity};
  candidates_.Add(input.logits, input.stats, range);
  for (double depth = 2.0; candidates_.count() < top_k && range.low > floor; depth *= 1.5) {
    range = {.low = Bound(input, depth, {.low = floor, .high = range.low}), .high = range.low};
    candidates_.Add(input.logits, input.stats, range);
  }
}

// `depth` temperatures below the greatest logit, within the range.
float Sampler::Bound(const Input& input, double depth, LogitRange range) noexcept {
  if (depth > kMaxDepth) return range.low;
  const double bound = static_cast<double>(input.weighting.greatest) -
                       depth * static_cast<double>(input.params.temperature);
  return static_cast<float>(
      std::clamp(bound, static_cast<double>(range.low), static_cast<double>(range.high)));
}

// A logit that at least top_k tokens reach, if there are so many chunks.
float Sampler::GreatestChunksBound(const LogitStats& stats, std::uint32_t top_k) noexcept {
  const std::size_t rank = std::min<std::size_t>(top_k, stats.maxima.size());
  std::copy(stats.maxima.begin(), stats.maxima.end(), chunk_scratch_.begin());
  const auto at = chunk_scratch_.begin() + static_cast<std::ptrdiff_t>(rank) - 1;
  std::nth_element(chunk_scratch_.begin(), at, chunk_scratch_.end(), std::greater<>());
  return *at;
}

}  // namespace kvrm
