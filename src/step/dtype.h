// SPDX-License-Identifier: Apache-2.0
// Element types of weights and of the KV cache. Names are GGUF's; values are ours.
//
// HAZARD: kernels include this file under instruction-set flags: enumerations and declarations
// only, nothing that can emit an inline function (docs/decisions/0008).
#pragma once

#include <stdint.h>

namespace kvrm {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBf16,
  kQ8_0,  // 32 elements: f16 scale d, 32 x int8                                   34 bytes
  kQ4_0,  // 32 elements: f16 scale d, 32 x 4 bit, value d (q - 8)                 18 bytes
  kQ5_0,  // 32 elements: f16 scale d, 32 high bits, 32 x 4 bit, value d (q - 16)  22 bytes
  kQ4_K,  // 256 elements: f16 d, dmin, 8 x (6 bit scale, 6 bit min), 4 bit       144 bytes
  kQ5_K,  // 256 elements: as Q4_K with a fifth bit                               176 bytes
  kQ6_K,  // 256 elements: 6 bit, 16 x int8 scale, f16 d                          210 bytes
};
inline constexpr int kNumDTypes = 9;

// "Q4_K". Never null.
const char* DTypeName(DType type);
// Elements per block: 1, 32 or 256. Every row is a whole number of blocks.
uint32_t DTypeBlockElements(DType type);
// Bytes per block as stored in files.
uint32_t DTypeBlockBytes(DType type);

}  // namespace kvrm
