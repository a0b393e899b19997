// SPDX-License-Identifier: Apache-2.0
// Rng: seeded random numbers, the same on every machine. The only source of randomness.
//
// xoshiro256** (Blackman, Vigna 2018) seeded by SplitMix64; named streams keep one consumer's
// draws from shifting another's.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/check.h"

namespace kvrm {

// One step of SplitMix64 (Steele, Lea, Flood 2014): a bijective mix of 64 bits.
constexpr std::uint64_t Mix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Rng {
 public:
  explicit constexpr Rng(std::uint64_t seed, std::string_view stream = {}) {
    for (const char c : stream)
      seed = Mix64(seed ^ static_cast<unsigned char>(c));
    for (std::uint64_t& word : state_)
      word = seed = Mix64(seed);
  }

  constexpr std::uint64_t Next() {
    const std::uint64_t result = Rotate(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = Rotate(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound). Requires: bound > 0. The bias of at most bound / 2^64 is of no account.
  constexpr std::uint64_t Below(std::uint64_t bound) {
    CHECK(bound > 0);
    return static_cast<std::uint64_t>((static_cast<Wide>(Next()) * bound) >> 64);
  }

  // Uniform in [low, high].
  constexpr std::uint64_t Between(std::uint64_t low, std::uint64_t high) {
    return low + Below(high - low + 1);
  }

  // Uniform in [0, 1), 53 bits.
  constexpr double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

 private:
  __extension__ using Wide = unsigned __int128;

  static constexpr std::uint64_t Rotate(std::uint64_t x, int by) {
    return (x << by) | (x >> (64 - by));
  }
  std::uint64_t state_[4] = {};
};

}  // namespace kvrm
