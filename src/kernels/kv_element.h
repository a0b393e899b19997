// SPDX-License-Identifier: Apache-2.0
// Single elements of the KV cache's types, for the plain kernels. Never included by an ISA file.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "kernels/cpu_kernels.h"
#include "step/dtype.h"
#include "step/layout.h"

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

// Q8_0: bytes within a tile of an element of K and of V, and of the scale that `dim` has in either.
inline std::size_t KvQ8KeyAt(std::size_t dim, std::uint32_t lane) {
  return dim / 4 * (4 * kTileTokens) + 4 * lane + dim % 4;
}
inline std::size_t KvQ8ValueAt(std::uint32_t head_dim, std::size_t dim, std::uint32_t lane) {
  return (std::size_t{lane / 4} * head_dim + dim) * 4 + lane % 4;
}
inline std::size_t KvScaleAt(std::uint32_t head_dim, std::size_t dim, std::uint32_t lane) {
  return kTileTokens * (std::size_t{head_dim} + dim / kKvScaleValues * 2) + 2 * lane;
}

inline float LoadKvScale(const std::uint8_t* tile, std::uint32_t head_dim, std::size_t dim,
                         std::uint32_t lane) {
  return LoadElement(tile + KvScaleAt(head_dim, dim, lane), 0, DType::kBf16);
}

inline float LoadKey(const std::uint8_t* tile, std::uint32_t head_dim, std::size_t dim,
                     std::uint32_t lane, DType type) {
  if (type != DType::kQ8_0) return LoadElement(tile, dim * kTileTokens + lane, type);
  return LoadKvScale(tile, head_dim, dim, lane) *
         static_cast<float>(tile[KvQ8KeyAt(dim, lane)] - 128);
}

inline float LoadValue(const std::uint8_t* tile, std::uint32_t head_dim, std::size_t dim,
                       std::uint32_t lane, DType type) {
  if (type != DType::kQ8_0) return LoadElement(tile, std::size_t{lane} * head_dim + dim, type);
  return LoadKvScale(tile, head_dim, dim, lane) *
         static_cast<float>(static_cast<std::int8_t>(tile[KvQ8ValueAt(head_dim, dim, lane)]));
}

// The attended lanes of tile `i`.
inline std::uint32_t FirstLane(const AttentionUnit& unit, std::uint32_t i) {
  return i == 0 ? unit.first_lane : 0;
}
inline std::uint32_t EndLane(const AttentionUnit& unit, std::uint32_t i) {
  return i + 1 == unit.num_tiles ? unit.end_lane : kTileTokens;
}

}  // namespace kvrm
