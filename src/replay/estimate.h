// SPDX-License-Identifier: Apache-2.0
// Means of repetitions and ratios of paired ones, with intervals of 95 % by Student's t.
//
// A ratio is that of the geometric means: the mean of the logarithms of value / baseline, pair by
// pair, and its interval, taken back. Threading: pure functions.
#pragma once

#include <cstdint>
#include <span>

namespace kvrm {

struct Estimate {
  std::uint64_t count = 0;
  double mean = 0.0;
  double low = 0.0;  // one repetition has no interval: low = high = mean
  double high = 0.0;
};

// The 97.5 % quantile of Student's t. From 31 degrees of freedom on the Cornish-Fisher expansion,
// which is off by less than 0.0001 there. Requires: degrees >= 1.
double StudentT975(std::uint64_t degrees);

Estimate EstimateMean(std::span<const double> values);
// Count 0 where any value is not above 0. Requires: as many of both.
Estimate EstimateRatio(std::span<const double> values, std::span<const double> baseline);

}  // namespace kvrm
