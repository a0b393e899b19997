// SPDX-License-Identifier: Apache-2.0
// Single elements of the KV cache's types, for the plain kernels. Never included by an ISA file.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "step/dtype.h"

namespace kvrm {

inline float LoadElement(const std::uint8_t* source, std::size_t index, DType type) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, source + 4 * index, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, source + 2 * index, sizeof(bits));
  return type == DType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
}

inline void StoreElement(std::uint8_t* target, std::size_t index, DType type, float value) {
  if (type == DType::kF32) {
    std::memcpy(target + 4 * index, &value, sizeof(value));
    return;
  }
  const std::uint16_t bits = type == DType::kF16 ? FloatToF16(value) : FloatToBf16(value);
  std::memcpy(target + 2 * index, &bits, sizeof(bits));
}

}  // namespace kvrm
