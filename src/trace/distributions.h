// SPDX-License-Identifier: Apache-2.0
// Distributions over Rng, written out so that a seed gives the same workload with every standard
// library.
//
// Threading: as the Rng.
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"

namespace kvrm {

double DrawExponential(Rng& rng, double mean);
// Box-Muller; two uniform draws each.
double DrawNormal(Rng& rng);
// e^(ln median + sigma N).
double DrawLogNormal(Rng& rng, double median, double sigma);
// Marsaglia and Tsang 2000; shape > 0.
double DrawGamma(Rng& rng, double shape, double scale);
// minimum * U^(-1 / alpha).
double DrawPareto(Rng& rng, double minimum, double alpha);
// 1, 2, ..: trials up to the first success; mean >= 1.
std::uint64_t DrawGeometric(Rng& rng, double mean);

// 0 .. count - 1, the i-th as likely as 1 / (i + 1)^exponent.
class Zipf {
 public:
  Zipf(std::uint32_t count, double exponent);
  std::uint32_t Draw(Rng& rng) const;

 private:
  std::vector<double> sums_;
};

}  // namespace kvrm
