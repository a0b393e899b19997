// SPDX-License-Identifier: Apache-2.0
// Where an axis has numbers, and what they read. Threading: pure functions.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "replay/text.h"

namespace kvrm {

// 1, 2 or 5 times a power of ten, so that about `count` of them make up `span`.
inline double NiceStep(double span, double count) {
  const double raw = span / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10.0 * power;
}

// Multiples of a nice step. Far from zero their numbers are beyond 2^53, where adding one has no
// effect: what is counted is the ticks.
inline std::vector<double> EvenTicks(double low, double high, int count) {
  std::vector<double> ticks;
  const double step = NiceStep(high - low, count);
  const double first = std::ceil(low / step);
  for (int i = 0; i <= count; ++i) {
    const double x = (first + i) * step;
    if (x <= high && (ticks.empty() || x > ticks.back())) ticks.push_back(x);
  }
  return ticks;
}

// Short enough for the margin.
inline std::string TickLabel(double value) {
  return value >= 10000.0 ? Format("%gk", value / 1000.0) : Format("%g", value);
}

}  // namespace kvrm
