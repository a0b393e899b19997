// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace {

double LogSumExp(std::span<const float> logits, float max_logit) noexcept {
  double sum = 0.0;
  for (const float logit : logits)
    sum += static_cast<double>(std::exp(logit - max_logit));
  return static_cast<double>(max_logit) + std::log(sum);
}

double DrawUniform(std::uint64_t seed, std::uint32_t output_idx) noexcept {
  return Rng(Mix64(seed) ^ output_idx, "sample").Uniform();
}

}  // namespace

float LogProb(std::span<const float> logits, std::int32_t token) noexcept {
  const float max_logit = *std::max_element(logits.begin(), logits.end());
  const double logit = static_cast<double>(logits[static_cast<std::size_t>(token)]);
  return static_cast<float>(logit - LogSumExp(logits, max_logit));
}

Sampler::Sampler(std::uint32_t vocab_size) : candidates_(vocab_size) {}

Sampled Sampler::Sample(std::span<const float> logits, const SamplingParams& params,
                        std::uint32_t output_idx) noexcept {
  CHECK(logits.size() == candidates_.size());
  std::size_t best = 0;
  bool finite = true;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    finite = finite && std::isfinite(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  if (!finite) return {};
  const std::int32_t token = params.temperature <= 0.0f || params.top_k == 1
                                 ? static_cast<std::int32_t>(best)
                                 : Draw(logits, params, logits[best], output_idx);
  const double logit = static_cast<double>(logits[static_cast<std::size_t>(token)]);
  return {.token = token, .logprob = static_cast<float>(logit - LogSumExp(logits, logits[best]))};
}

std::int32_t Sampler::Draw(std::span<const float> logits, const SamplingParams& params,
                           float max_logit, std::uint32_t output_idx) noexcept {
  const auto weight = [&](float logit) {
    return std::exp(static_cast<double>(logit - max_logit) /
                    static_cast<double>(params.temperature));
  };
  const double min_weight = static_cast<double>(params.min_p);  // The largest weight is 1.
  std::size_t count = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (min_weight > 0.0 && weight(logits[i]) < min_weight) continue;
    candidates_[count++] = {.logit = logits[i], .token = static_cast<std::int32_t>(i)};
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const auto begin = candidates_.begin();
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < count) {
    std::nth_element(begin, begin + params.top_k, begin + static_cast<std::ptrdiff_t>(count),
                     better);
    count = static_cast<std::size_t>(params.top_k);
  }
  // min_p keeps a prefix of the order by weight, as top_k and top_p do, so taking it first changes
  // nothing but the total that top_p is a share of; that total is of all that top_k left.
  double total = 0.0;
  if (params.top_p < 1.0f) {
    std::sort(begin, begin + static_cast<std::ptrdiff_t>(count), better);
    double kept = 0.0;
    for (std::size_t i = 0; i < count; ++i)
      total += weight(candidates_[i].logit);
    std::size_t num_kept = 0;
    while (num_kept < count && kept < static_cast<double>(params.top_p) * total) {
      kept += weight(candidates_[num_kept++].logit);
    }
    count = std::max<std::size_t>(num_kept, 1);
    total = kept;
  } else {
    // nth_element leaves an order that depends on the input alone, but not one to build on.
    std::sort(begin, begin + static_cast<std::ptrdiff_t>(params.top_k > 0 ? count : 0), better);
    for (std::size_t i = 0; i < count; ++i)
      total += weight(candidates_[i].logit);
  }
  double left = DrawUniform(params.seed, output_idx) * total;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    left -= weight(candidates_[i].logit);
    if (left < 0.0) return candidates_[i].token;
  }
  return candidates_[count - 1].token;
}

}  // namespace kvrm
