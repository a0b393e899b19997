// SPDX-License-Identifier: Apache-2.0
// Random: the same numbers from the same seed on every machine (splitmix64).
#pragma once

#include <cstdint>

namespace foreign {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, bound).
  std::uint32_t Below(std::uint32_t bound) { return static_cast<std::uint32_t>(Next() % bound); }
  bool Chance(std::uint32_t percent) { return Below(100) < percent; }
  // In [0, 1).
  float Unit() { return static_cast<float>(Next() >> 40) * 0x1p-24f; }

 private:
  std::uint64_t state_;
};

}  // namespace foreign
