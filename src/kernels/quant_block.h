// SPDX-License-Identifier: Apache-2.0
// The block formats of GGUF, taken apart: 32 weights at a time, whatever the format's own block is.
//
// Every quantised weight is   d * scale * (q - zero) - dmin * min   with unsigned q; what differs
// between formats is how the parts are stored. Pure functions; source bytes need no alignment.
#pragma once

#include <cstdint>

#include "step/dtype.h"

namespace kvrm {

inline constexpr std::uint32_t kQuantElements = 32;

struct QuantBlock {
  std::uint8_t q[kQuantElements];
  std::uint16_t d;        // Bits of an f16.
  std::uint16_t dmin;     // Bits of an f16; 0 where the format has no minimum.
  std::uint8_t scale[2];  // Of elements [0, 16) and [16, 32): 6 bits; Q6_K: int8; else 1.
  std::uint8_t min;
};

// The scales of one block in float, multiplied in the order the format prescribes.
struct QuantScales {
  float scale[2];
  float min;
};

// What q is offset by: 128 for Q8_0 (stored signed), 8, 16, 32; 0 for Q4_K and Q5_K.
std::int32_t QuantZero(DType type);
// Bytes of one row of `cols` weights in the file.
std::uint64_t FileRowBytes(DType type, std::uint32_t cols);
// Elements [32 index, 32 index + 32) of a row. Requires: a quantised type.
void DecodeQuantBlock(DType type, const std::uint8_t* row, std::uint32_t index, QuantBlock* block);
QuantScales DecodeScales(DType type, const QuantBlock& block);
// Elements [begin, begin + count) of a row of any type as floats. Requires: count <= 32; for
// quantised types begin is a multiple of 32 and count is 32.
void DecodeWeights(DType type, const std::uint8_t* row, std::uint32_t begin, std::uint32_t count,
                   float* target);

}  // namespace kvrm
