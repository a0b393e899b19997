// SPDX-License-Identifier: Apache-2.0
#include "engine/step_cost.h"

#include <algorithm>
#include <cmath>

namespace kvrm {
namespace {

// Priors in units of the fixed cost: a model whose weights are read once a step and whose rows cost
// an eighth of that. They are wrong by a factor of ten for some models and are given up fast.
constexpr double kRowShape = 0.125;
constexpr double kContextShape = 0.0003;
constexpr double kTokenShape = 0.125;
constexpr double kAttendedShape = 0.0001;
// Of a prior coefficient at the present scale.
constexpr double kLeastShare = 1.0 / 64;
constexpr double kDeviation = 2.0;  // of a prior, and the ceiling
// What a coefficient may drift in one step, and the noise of one step's time, both relative. Their
// quotient is the gain of a settled model: a tenth.
constexpr double kDrift = 0.02;
constexpr double kNoise = 0.2;
constexpr double kMaxError = 0.5;
constexpr double kFarTooHigh = 1.25;

}  // namespace

double StepCost::Group::Sum(const Terms& x) const noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < kMaxTerms; ++i)
    sum += theta[i] * x[i];
  return sum;
}

double StepCost::Group::ShapeSum(const Terms& x) const noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < kMaxTerms; ++i)
    sum += shape[i] * x[i];
  return sum;
}

void StepCost::Group::Seed(double unit) noexcept {
  for (std::size_t i = 0; i < kMaxTerms; ++i) {
    theta[i] = shape[i] * unit;
    covariance[i].fill(0);
    covariance[i][i] = kDeviation * theta[i] * kDeviation * theta[i];
  }
}

// A coefficient that would fall below its least value is put there and left out, and the others are
// corrected for what is then still missing. (Clipping it alone would leave the others with the rise
// that was to make up for its fall: the prediction would move away from what was seen.)
void StepCost::Group::Update(const Terms& x, double total, double error) noexcept {
  const double unit = Sum(x) / ShapeSum(x);
  Terms free = x;
  Terms px = {};  // covariance * free / total
  double spread = 0;
  for (std::size_t round = 0; round <= kMaxTerms; ++round) {
    spread = kNoise * kNoise;
    px = {};
    for (std::size_t i = 0; i < kMaxTerms; ++i) {
      for (std::size_t j = 0; j < kMaxTerms; ++j)
        px[i] += covariance[i][j] * free[j] / total;
      spread += px[i] * free[i] / total;
    }
    std::size_t i = 0;
    while (i < kMaxTerms &&
           (free[i] <= 0 || theta[i] + px[i] / spread * error >= kLeastShare * shape[i] * unit))
      ++i;
    if (i == kMaxTerms) break;
    const double least = kLeastShare * shape[i] * unit;
    error += (theta[i] - least) * x[i] / total;
    theta[i] = least;
    free[i] = 0;
    for (std::size_t j = 0; j < kMaxTerms; ++j) {
      if (j != i) covariance[i][j] = covariance[j][i] = 0;
    }
  }
  for (std::size_t i = 0; i < kMaxTerms; ++i) {
    theta[i] = std::max(theta[i] + px[i] / spread * error, kLeastShare * shape[i] * unit);
    for (std::size_t j = 0; j < kMaxTerms; ++j)
      covariance[i][j] -= px[i] * px[j] / spread;
  }
  Drift(unit);
}

void StepCost::Group::Drift(double unit) noexcept {
  for (std::size_t i = 0; i < kMaxTerms; ++i) {
    const double scale = shape[i] * unit;
    covariance[i][i] = std::max(covariance[i][i], 0.0) + kDrift * scale * kDrift * scale;
    const double ceiling = kDeviation * scale * kDeviation * scale;
    if (covariance[i][i] <= ceiling) continue;
    // Row and column together: the matrix stays what a covariance can be.
    const double shrink = std::sqrt(ceiling / covariance[i][i]);
    for (std::size_t j = 0; j < kMaxTerms; ++j) {
      covariance[i][j] *= shrink;
      covariance[j][i] *= shrink;
    }
  }
}

StepCost::StepCost() noexcept {
  decode_.shape = {1, kRowShape, kContextShape};
  prompt_.shape = {kTokenShape, kAttendedShape, 0};
  decode_.Seed(1);
  prompt_.Seed(1);
}

double StepCost::Predict(const StepLoad& load) const noexcept {
  return decode_.Sum(DecodeTerms(load)) + prompt_.Sum(PromptTerms(load));
}

void StepCost::Observe(const StepLoad& load, double seconds) noexcept {
  if (!(seconds > 0)) return;
  const Terms decode = DecodeTerms(load);
  const Terms prompt = PromptTerms(load);
  const bool has_prompt = load.prompt_tokens > 0;
  if (!decode_.is_seeded && !has_prompt) {
    decode_.Seed(seconds / decode_.ShapeSum(decode));
    decode_.is_seeded = true;
    return;
  }
  if (!decode_.is_seeded && !prompt_.is_seeded) {
    // One time for all that is unknown: parted as the priors say.
    const double unit = seconds / (decode_.ShapeSum(decode) + prompt_.ShapeSum(prompt));
    decode_.Seed(unit);
    prompt_.Seed(unit);
    prompt_.is_seeded = true;
    return;
  }
  const double before = decode_.Sum(decode);
  if (has_prompt && !prompt_.is_seeded) {
    prompt_.Seed(std::max(seconds - before, before / 8) / prompt_.ShapeSum(prompt));
    prompt_.is_seeded = true;
    return;
  }
  const double total = before + (has_prompt ? prompt_.Sum(prompt) : 0);
  const double error = std::clamp((seconds - total) / total, -kMaxError, kMaxError);
  if (has_prompt) return prompt_.Update(prompt, total, error);
  // Steps are slow by chance, not fast: the prediction was wrong, and with it what it left to
  // prompts.
  if (total > kFarTooHigh * seconds) prompt_.is_seeded = false;
  decode_.Update(decode, total, error);
}

std::uint32_t StepCost::PromptTokensWithin(const StepLoad& load, double num_before, double seconds,
                                           std::uint32_t most) const noexcept {
  StepLoad with = load;
  with.AddPrompt(num_before, 0);
  const double slack = seconds - Predict(with);
  if (!(slack > 0)) return 0;
  // attended / 2 * n^2 + linear * n == slack, in the form that does not cancel.
  const double attended = prompt_.theta[1];
  const double linear = prompt_.theta[0] + attended * num_before + decode_.theta[2];
  const double count = 2 * slack / (linear + std::sqrt(linear * linear + 2 * attended * slack));
  return count >= most ? most : static_cast<std::uint32_t>(count);
}

}  // namespace kvrm
