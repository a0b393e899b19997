// SPDX-License-Identifier: Apache-2.0
#include "replay/estimate.h"

#include <array>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace kvrm {

double StudentT975(std::uint64_t degrees) {
  CHECK(degrees >= 1);
  static constexpr std::array<double, 30> kTable = {
      12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
      2.2010,  2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
      2.0796,  2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423};
  if (degrees <= kTable.size()) return kTable[degrees - 1];
  constexpr double kZ = 1.959964;
  const double n = static_cast<double>(degrees);
  const double z3 = kZ * kZ * kZ;
  const double z5 = z3 * kZ * kZ;
  return kZ + (z3 + kZ) / (4.0 * n) + (5.0 * z5 + 16.0 * z3 + 3.0 * kZ) / (96.0 * n * n);
}

Estimate EstimateMean(std::span<const double> values) {
  Estimate estimate = {.count = values.size()};
  if (values.empty()) return estimate;
  const double n = static_cast<double>(values.size());
  for (const double value : values)
    estimate.mean += value / n;
  double half = 0.0;
  if (values.size() > 1) {
    double squares = 0.0;
    for (const double value : values)
      squares += (value - estimate.mean) * (value - estimate.mean);
    half = StudentT975(values.size() - 1) * std::sqrt(squares / (n - 1.0) / n);
  }
  estimate.low = estimate.mean - half;
  estimate.high = estimate.mean + half;
  return estimate;
}

Estimate EstimateRatio(std::span<const double> values, std::span<const double> baseline) {
  CHECK(values.size() == baseline.size());
  std::vector<double> logs;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] > 0.0 && baseline[i] > 0.0)) return {};
    logs.push_back(std::log(values[i] / baseline[i]));
  }
  Estimate estimate = EstimateMean(logs);
  estimate.mean = std::exp(estimate.mean);
  estimate.low = std::exp(estimate.low);
  estimate.high = std::exp(estimate.high);
  return estimate;
}

}  // namespace kvrm
