// SPDX-License-Identifier: Apache-2.0
// The scales of a block of activations in eight bits (Q8Scale). All tables take them from here, so
// that they agree to the bit.
//
// HAZARD: included under instruction-set flags: everything here has internal linkage.
#pragma once

#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// `greatest` are the bits of the greatest magnitude, so that Inf and NaN cannot hide. Below 2^-100
// the reciprocal of the scale would overflow before the values matter; from 2^110 on magic_scale
// would.
inline bool IsQ8Usable(uint32_t greatest) {
  constexpr uint32_t kLeast = (127u - 100) << 23;
  constexpr uint32_t kTooGreat = (127u + 110) << 23;
  return greatest >= kLeast && greatest < kTooGreat;
}

// greatest / 127 in 22 bits. Requires: IsQ8Usable(greatest).
inline float RoundedQ8Scale(uint32_t greatest) {
  float scale;
  __builtin_memcpy(&scale, &greatest, sizeof(scale));
  scale /= 127.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &scale, sizeof(bits));
  bits = (bits + 2) & ~3u;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return scale;
}

// `low` and `high` are the sums of q[0, 16) and q[16, 32); `scale` is of no account unless the
// block is usable.
inline Q8Scale MakeQ8Scale(uint32_t greatest, float scale, int32_t low, int32_t high) {
  if (!IsQ8Usable(greatest)) scale = greatest >= (127u << 23) ? __builtin_nanf("") : 0.0f;
  const int32_t sum = low + high;
  return {scale,
          scale * static_cast<float>(sum),
          scale * kQ8Magic,
          {kQ8MagicBits - 128 * sum, kQ8MagicBits - 8 * sum, kQ8MagicBits - 16 * sum, -32 * low,
           -32 * high}};
}

// What a sum over part kPart of the block starts from; kStart is an index of Q8Scale::start.
// `scale` points to a Q8Scale and needs no alignment.
template <int kStart, int kPart>
int32_t SumStart(const uint8_t* scale) {
  if constexpr (kStart == kStart0) return kQ8MagicBits;
  int32_t start;
  __builtin_memcpy(&start, scale + offsetof(Q8Scale, start) + 4 * (kStart + kPart), sizeof(start));
  return start;
}

}  // namespace
}  // namespace kvrm
