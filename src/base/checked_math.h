// SPDX-License-Identifier: Apache-2.0
// Arithmetic on sizes that come from outside: every result is a value or "does not fit".
//
// F1 (docs/testing.md): sizes read from a file, a request or a flag meet +, * and rounding only
// through these helpers.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>

namespace kvrm {

inline std::optional<std::uint64_t> CheckedAdd(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

inline std::optional<std::uint64_t> CheckedMul(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Rounds up to a multiple of `alignment`. nullopt when it does not fit or `alignment` is not a
// power of two.
inline std::optional<std::uint64_t> CheckedAlignUp(std::uint64_t value, std::uint64_t alignment) {
  if (!std::has_single_bit(alignment)) return std::nullopt;
  const std::optional<std::uint64_t> sum = CheckedAdd(value, alignment - 1);
  if (!sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

}  // namespace kvrm
