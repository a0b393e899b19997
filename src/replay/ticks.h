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

// Multiples of a nice step.
inline std::vector<double> EvenTicks(double low, double high, double count) {
  std::vector<double> ticks;
  const double step = NiceStep(high - low, count);
  for (double i = std::ceil(low / step); i * step <= high; i += 1.0)
    ticks.push_back(i * step);
  return ticks;
}

// Short enough for the margin.
inline std::string TickLabel(double value) {
  return value >= 10000.0 ? Format("%gk", value / 1000.0) : Format("%g", value);
}

}  // namespace kvrm
