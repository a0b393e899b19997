// SPDX-License-Identifier: Apache-2.0
// The layout of the vector tables (cpu_kernels.h), written and read back in plain C++.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu_kernels.h"
#include "kernels/kv_element.h"
#include "kernels/quant_block.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kVectorBytes = 64;
constexpr std::uint32_t kGroupRows = 16;
constexpr std::uint32_t kScaleBytes = 32;  // of a group
constexpr std::uint32_t kSuperElements = 256;

bool HasMinimum(DType type) {
  return type == DType::kQ4_K || type == DType::kQ5_K;
}

bool HasSuper(DType type) {
  return HasMinimum(type) || type == DType::kQ6_K;
}

constexpr bool IsFloat(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBf16;
}

std::uint32_t QuantBytes(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return 512;
    case DType::kQ4_0:
    case DType::kQ4_K:
      return 256;
    case DType::kQ5_0:
    case DType::kQ5_K:
      return 320;
    case DType::kQ6_K:
      return 384;
    default:
      CHECK(false);
  }
  return 0;
}

// Of both groups.
std::uint32_t SuperBytes(DType type) {
  return HasMinimum(type) ? 128 : HasSuper(type) ? 64 : 0;
}

// Where the parts of one block of one group lie in the tile.
struct BlockPlace {
  std::size_t quants;
  std::size_t scales;
  std::size_t super;
};

BlockPlace Place(DType type, std::uint32_t block, std::uint32_t group) {
  const std::size_t super = SuperBytes(type);
  const std::size_t block_bytes = 2 * std::size_t{QuantBytes(type) + kScaleBytes};
  const std::size_t supers = block * kQuantElements / kSuperElements;
  const std::size_t begin = block * block_bytes + (supers + 1) * super;
  BlockPlace place;
  place.quants = begin + group * QuantBytes(type);
  place.scales = begin + std::size_t{2} * QuantBytes(type) + group * kScaleBytes;
  place.super =
      supers * (super + kSuperElements / kQuantElements * block_bytes) + group * super / 2;
  return place;
}

// Four quants at a time, one per byte: the same shifts for each, none crossing into its neighbour.
std::uint32_t LoadFour(const std::uint8_t* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof(four));
  return four;
}

void StoreFour(std::uint8_t* p, std::uint32_t four) {
  std::memcpy(p, &four, sizeof(four));
}

constexpr std::uint32_t kLow4 = 0x0f0f0f0fu;
constexpr std::uint32_t kLow2 = 0x03030303u;
constexpr std::uint32_t kLow1 = 0x01010101u;

template <DType kType>
constexpr bool kFiveBits = kType == DType::kQ5_0 || kType == DType::kQ5_K;

// One row's bytes of the vectors of a block. `quants` points at the row's first.
template <DType kType>
void PutQuants(std::uint8_t* quants, const std::uint8_t* q) {
  std::uint32_t high[2] = {};
  for (std::uint32_t v = 0; v < 8; ++v) {
    const std::uint32_t four = LoadFour(q + 4 * v);
    if constexpr (kType == DType::kQ8_0) {
      StoreFour(quants + v * kVectorBytes, four);
      continue;
    }
    if (v < 4)
      StoreFour(quants + v * kVectorBytes, (four & kLow4) | (LoadFour(q + 4 * (v + 4)) & kLow4)
                                                                << 4);
    if constexpr (kFiveBits<kType>) high[0] |= ((four >> 4) & kLow1) << v;
    if constexpr (kType == DType::kQ6_K) high[v / 4] |= ((four >> 4) & kLow2) << (2 * (v % 4));
  }
  if constexpr (kFiveBits<kType> || kType == DType::kQ6_K)
    StoreFour(quants + 4 * kVectorBytes, high[0]);
  if constexpr (kType == DType::kQ6_K) StoreFour(quants + 5 * kVectorBytes, high[1]);
}

template <DType kType>
void GetQuants(const std::uint8_t* quants, std::uint8_t* q) {
  for (std::uint32_t v = 0; v < 8; ++v) {
    if constexpr (kType == DType::kQ8_0) {
      StoreFour(q + 4 * v, LoadFour(quants + v * kVectorBytes));
      continue;
    }
    std::uint32_t four = (LoadFour(quants + v % 4 * kVectorBytes) >> (v < 4 ? 0 : 4)) & kLow4;
    const std::uint8_t* high = quants + 4 * kVectorBytes;
    if constexpr (kFiveBits<kType>) four |= ((LoadFour(high) >> v) & kLow1) << 4;
    if constexpr (kType == DType::kQ6_K)
      four |= ((LoadFour(high + v / 4 * kVectorBytes) >> (2 * (v % 4))) & kLow2) << 4;
    StoreFour(q + 4 * v, four);
  }
}

template <DType kType>
void PutBlock(std::uint8_t* tile, const BlockPlace& place, std::uint32_t lane,
              const QuantBlock& block) {
  PutQuants<kType>(tile + place.quants + 4 * lane, block.q);
  std::uint8_t* scales = tile + place.scales;
  std::uint8_t* super = tile + place.super;
  if (HasSuper(kType)) {
    scales[lane] = block.scale[0];
    scales[kGroupRows + lane] = HasMinimum(kType) ? block.min : block.scale[1];
    std::memcpy(super + lane * sizeof(block.d), &block.d, sizeof(block.d));
  } else {
    std::memcpy(scales + lane * sizeof(block.d), &block.d, sizeof(block.d));
  }
  if (HasMinimum(kType))
    std::memcpy(super + (kGroupRows + lane) * sizeof(block.dmin), &block.dmin, sizeof(block.dmin));
}

template <DType kType>
void GetBlock(const std::uint8_t* tile, const BlockPlace& place, std::uint32_t lane,
              QuantBlock* block) {
  const std::uint8_t* scales = tile + place.scales;
  const std::uint8_t* super = tile + place.super;
  *block = {.q = {}, .d = 0, .dmin = 0, .scale = {1, 1}, .min = 0};
  GetQuants<kType>(tile + place.quants + 4 * lane, block->q);
  if (HasSuper(kType)) {
    block->scale[0] = scales[lane];
    block->scale[1] = HasMinimum(kType) ? scales[lane] : scales[kGroupRows + lane];
    block->min = HasMinimum(kType) ? scales[kGroupRows + lane] : std::uint8_t{0};
    std::memcpy(&block->d, super + lane * sizeof(block->d), sizeof(block->d));
  } else {
    std::memcpy(&block->d, scales + lane * sizeof(block->d), sizeof(block->d));
  }
  if (HasMinimum(kType))
    std::memcpy(&block->dmin, super + (kGroupRows + lane) * sizeof(block->dmin),
                sizeof(block->dmin));
}

template <DType kType>
void PackQuantTile(std::uint8_t* tile, const std::uint8_t* source, std::uint32_t cols,
                   std::uint32_t lanes) {
  for (std::uint32_t b = 0; b < cols / kQuantElements; ++b) {
    for (std::uint32_t lane = 0; lane < lanes; ++lane) {
      QuantBlock block;
      DecodeQuantBlock(kType, source + lane * FileRowBytes(kType, cols), b, &block);
      PutBlock<kType>(tile, Place(kType, b, lane / kGroupRows), lane % kGroupRows, block);
    }
  }
}

// Bytes from a tile's start to an element.
template <DType kType>
std::size_t FloatPlace(std::uint32_t column, std::uint32_t lane) {
  if constexpr (kType == DType::kBf16)
    return (std::size_t{column / 2} * kOutTile + lane) * 4 + column % 2 * 2;
  return (std::size_t{column} * kOutTile + lane) * DTypeBlockBytes(kType);
}

// Columns in stretches, so that both sides stay in the nearest cache while they are transposed.
template <DType kType>
void PackFloatTile(std::uint8_t* tile, const std::uint8_t* source, std::uint32_t cols,
                   std::uint32_t lanes) {
  constexpr std::uint32_t kStretch = 64;
  constexpr std::size_t kBytes = kType == DType::kF32 ? 4 : 2;
  for (std::uint32_t begin = 0; begin < cols; begin += kStretch) {
    const std::uint32_t end = std::min(begin + kStretch, cols);
    for (std::uint32_t lane = 0; lane < lanes; ++lane) {
      const std::uint8_t* row = source + std::size_t{lane} * cols * kBytes;
      for (std::uint32_t k = begin; k < end; ++k)
        std::memcpy(tile + FloatPlace<kType>(k, lane), row + k * kBytes, kBytes);
    }
  }
}

template <DType kType>
void QuantRow(const std::uint8_t* tile, std::uint32_t cols, std::uint32_t lane, float* target) {
  const std::int32_t zero = QuantZero(kType);
  for (std::uint32_t b = 0; b < cols / kQuantElements; ++b) {
    QuantBlock block;
    GetBlock<kType>(tile, Place(kType, b, lane / kGroupRows), lane % kGroupRows, &block);
    const QuantScales scales = DecodeScales(kType, block);
    for (std::uint32_t i = 0; i < kQuantElements; ++i)
      target[b * kQuantElements + i] =
          scales.scale[i / 16] * static_cast<float>(block.q[i] - zero) - scales.min;
  }
}

}  // namespace

std::uint64_t OutTileBytes(DType type, std::uint32_t cols) {
  if (IsFloat(type)) {
    const std::uint64_t even = type == DType::kBf16 ? std::uint64_t{cols} + cols % 2 : cols;
    return even * kOutTile * DTypeBlockBytes(type);
  }
  return std::uint64_t{cols} / kQuantElements * 2 * (QuantBytes(type) + kScaleBytes) +
         std::uint64_t{cols} / kSuperElements * SuperBytes(type);
}

template <DType kType>
std::uint64_t TiledBytes(std::uint32_t rows, std::uint32_t cols) {
  return (std::uint64_t{rows} + kOutTile - 1) / kOutTile * OutTileBytes(kType, cols);
}

template <DType kType>
void TiledPack(void* target, const void* source, std::uint32_t rows, std::uint32_t cols,
               std::uint32_t row_begin, std::uint32_t row_end) {
  CHECK(row_begin % kOutTile == 0 && (row_end % kOutTile == 0 || row_end == rows));
  CHECK(cols % DTypeBlockElements(kType) == 0);
  const std::uint64_t tile_bytes = OutTileBytes(kType, cols);
  for (std::uint32_t row = row_begin; row < row_end; row += kOutTile) {
    std::uint8_t* tile = static_cast<std::uint8_t*>(target) + row / kOutTile * tile_bytes;
    const std::uint8_t* first =
        static_cast<const std::uint8_t*>(source) + row * FileRowBytes(kType, cols);
    const std::uint32_t lanes = std::min(kOutTile, row_end - row);
    if (lanes < kOutTile || kType == DType::kBf16) std::memset(tile, 0, tile_bytes);
    if constexpr (IsFloat(kType)) {
      PackFloatTile<kType>(tile, first, cols, lanes);
    } else {
      PackQuantTile<kType>(tile, first, cols, lanes);
    }
  }
}

template <DType kType>
void TiledRow(const PackedMatrix& w, std::uint32_t row, float* target) {
  const std::uint8_t* tile =
      static_cast<const std::uint8_t*>(w.data) + row / kOutTile * OutTileBytes(kType, w.cols);
  const std::uint32_t lane = row % kOutTile;
  if constexpr (!IsFloat(kType)) {
    QuantRow<kType>(tile, w.cols, lane, target);
  } else {
    for (std::uint32_t k = 0; k < w.cols; ++k)
      target[k] = LoadElement(tile + FloatPlace<kType>(k, lane), 0, kType);
  }
}

#define KVRM_TILED(type)                                                                         \
  template std::uint64_t TiledBytes<type>(std::uint32_t, std::uint32_t);                         \
  template void TiledPack<type>(void*, const void*, std::uint32_t, std::uint32_t, std::uint32_t, \
                                std::uint32_t);                                                  \
  template void TiledRow<type>(const PackedMatrix&, std::uint32_t, float*)

KVRM_TILED(DType::kF32);
KVRM_TILED(DType::kF16);
KVRM_TILED(DType::kBf16);
KVRM_TILED(DType::kQ8_0);
KVRM_TILED(DType::kQ4_0);
KVRM_TILED(DType::kQ5_0);
KVRM_TILED(DType::kQ4_K);
KVRM_TILED(DType::kQ5_K);
KVRM_TILED(DType::kQ6_K);
#undef KVRM_TILED

}  // namespace kvrm
