// SPDX-License-Identifier: Apache-2.0
#include "trace/distributions.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvrm {
namespace {

// Uniform in (0, 1]: its logarithm is finite.
double Positive(Rng& rng) {
  return 1.0 - rng.Uniform();
}

}  // namespace

double DrawExponential(Rng& rng, double mean) {
  return -mean * std::log(Positive(rng));
}

double DrawNormal(Rng& rng) {
  const double radius = std::sqrt(-2.0 * std::log(Positive(rng)));
  return radius * std::cos(2.0 * std::numbers::pi * rng.Uniform());
}

double DrawLogNormal(Rng& rng, double median, double sigma) {
  return median * std::exp(sigma * DrawNormal(rng));
}

double DrawGamma(Rng& rng, double shape, double scale) {
  CHECK(shape > 0.0);
  if (shape < 1.0) {
    const double boost = std::pow(Positive(rng), 1.0 / shape);
    return DrawGamma(rng, shape + 1.0, scale) * boost;
  }
  const double d = shape - 1.0 / 3.0;
  const double c = 1.0 / std::sqrt(9.0 * d);
  while (true) {
    const double x = DrawNormal(rng);
    const double v = std::pow(1.0 + c * x, 3);
    if (v > 0.0 && std::log(Positive(rng)) < 0.5 * x * x + d - d * v + d * std::log(v))
      return d * v * scale;
  }
}

double DrawPareto(Rng& rng, double minimum, double alpha) {
  return minimum * std::pow(Positive(rng), -1.0 / alpha);
}

std::uint64_t DrawGeometric(Rng& rng, double mean) {
  if (mean <= 1.0) return 1;
  const double draw = std::log(Positive(rng)) / std::log1p(-1.0 / mean);
  return 1 + static_cast<std::uint64_t>(draw);
}

Zipf::Zipf(std::uint32_t count, double exponent) {
  CHECK(count > 0);
  double sum = 0.0;
  for (std::uint32_t i = 0; i < count; ++i) {
    sum += std::pow(static_cast<double>(i) + 1.0, -exponent);
    sums_.push_back(sum);
  }
}

std::uint32_t Zipf::Draw(Rng& rng) const {
  const auto at = std::ranges::upper_bound(sums_, rng.Uniform() * sums_.back());
  return static_cast<std::uint32_t>(
      std::min<std::ptrdiff_t>(at - sums_.begin(), std::ssize(sums_) - 1));
}

}  // namespace kvrm
