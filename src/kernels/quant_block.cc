// SPDX-License-Identifier: Apache-2.0
#include "kernels/quant_block.h"

#include <cstring>

#include "base/check.h"
#include "base/float16.h"

namespace kvrm {
namespace {

std::uint16_t Load16(const std::uint8_t* p) {
  return static_cast<std::uint16_t>(p[0] | (p[1] << 8));
}

std::uint8_t Byte(int value) {
  return static_cast<std::uint8_t>(value);
}

// 16 bytes of nibbles: element j is the low nibble of byte j, element j + 16 its high nibble.
void DecodeNibbles(const std::uint8_t* source, std::uint8_t* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = source[j] & 15;
    q[j + 16] = source[j] >> 4;
  }
}

void DecodeQ8_0(const std::uint8_t* source, QuantBlock* block) {
  block->d = Load16(source);
  for (std::uint32_t j = 0; j < kQuantElements; ++j)
    block->q[j] = source[2 + j] ^ 0x80u;  // Two's complement plus 128.
}

void DecodeQ4_0(const std::uint8_t* source, QuantBlock* block) {
  block->d = Load16(source);
  DecodeNibbles(source + 2, block->q);
}

void DecodeQ5_0(const std::uint8_t* source, QuantBlock* block) {
  block->d = Load16(source);
  DecodeNibbles(source + 6, block->q);
  for (std::uint32_t j = 0; j < kQuantElements; ++j) {
    const int high = (source[2 + j / 8] >> (j % 8)) & 1;
    block->q[j] = Byte(block->q[j] | (high << 4));
  }
}

// 8 scales and 8 minima of 6 bits in 12 bytes: the first four of each lie in the low 6 bits of
// bytes 0-3 and 4-7; the last four have their low nibbles in bytes 8-11 and their high 2 bits on
// top of the first four.
void DecodeSixBits(const std::uint8_t* source, std::uint32_t index, QuantBlock* block) {
  if (index < 4) {
    block->scale[0] = source[index] & 63;
    block->min = source[index + 4] & 63;
  } else {
    const int low = source[index + 4];
    block->scale[0] = Byte((low & 15) | ((source[index - 4] >> 6) << 4));
    block->min = Byte((low >> 4) | ((source[index] >> 6) << 4));
  }
  block->scale[1] = block->scale[0];
}

// d, dmin, 12 bytes of scales, then nibbles: 32 bytes hold block 2i in their low and 2i + 1 in
// their high nibbles. Q5_K has 32 bytes before them, whose bit `index` is the block's fifth bit.
void DecodeK45(const std::uint8_t* source, std::uint32_t index, bool fifth_bit, QuantBlock* block) {
  block->d = Load16(source);
  block->dmin = Load16(source + 2);
  DecodeSixBits(source + 4, index, block);
  const std::uint8_t* high = source + 16;
  const std::uint8_t* low = source + (fifth_bit ? 48 : 16) + 32 * (index / 2);
  const std::uint32_t shift = 4 * (index % 2);
  for (std::uint32_t j = 0; j < kQuantElements; ++j) {
    const int bit = fifth_bit ? (high[j] >> index) & 1 : 0;
    block->q[j] = Byte(((low[j] >> shift) & 15) | (bit << 4));
  }
}

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, d. Each half of 128
// elements has 64 low and 32 high bytes: its block b (of 4) takes nibble b / 2 of low bytes
// 32 (b % 2) + j and bit pair b of high byte j.
void DecodeQ6_K(const std::uint8_t* source, std::uint32_t index, QuantBlock* block) {
  const std::uint32_t half = index / 4;
  const std::uint32_t b = index % 4;
  const std::uint8_t* low = source + 64 * half + 32 * (b % 2);
  const std::uint8_t* high = source + 128 + 32 * half;
  block->d = Load16(source + 208);
  block->scale[0] = source[192 + 2 * index];
  block->scale[1] = source[192 + 2 * index + 1];
  for (std::uint32_t j = 0; j < kQuantElements; ++j)
    block->q[j] = Byte(((low[j] >> (4 * (b / 2))) & 15) | (((high[j] >> (2 * b)) & 3) << 4));
}

}  // namespace

std::int32_t QuantZero(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return 128;
    case DType::kQ4_0:
      return 8;
    case DType::kQ5_0:
      return 16;
    case DType::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

std::uint64_t FileRowBytes(DType type, std::uint32_t cols) {
  return std::uint64_t{cols / DTypeBlockElements(type)} * DTypeBlockBytes(type);
}

void DecodeQuantBlock(DType type, const std::uint8_t* row, std::uint32_t index, QuantBlock* block) {
  block->dmin = 0;
  block->scale[0] = block->scale[1] = 1;
  block->min = 0;
  const std::uint32_t per_block = DTypeBlockElements(type) / kQuantElements;
  CHECK(per_block > 0);
  const std::uint8_t* source = row + std::uint64_t{index / per_block} * DTypeBlockBytes(type);
  switch (type) {
    case DType::kQ8_0:
      return DecodeQ8_0(source, block);
    case DType::kQ4_0:
      return DecodeQ4_0(source, block);
    case DType::kQ5_0:
      return DecodeQ5_0(source, block);
    case DType::kQ4_K:
      return DecodeK45(source, index % 8, false, block);
    case DType::kQ5_K:
      return DecodeK45(source, index % 8, true, block);
    case DType::kQ6_K:
      return DecodeQ6_K(source, index % 8, block);
    default:
      CHECK(false);
  }
}

QuantScales DecodeScales(DType type, const QuantBlock& block) {
  const float d = F16ToFloat(block.d);
  QuantScales scales;
  for (int half = 0; half < 2; ++half) {
    const int bits = block.scale[half];
    const int scale = type == DType::kQ6_K && bits > 127 ? bits - 256 : bits;
    scales.scale[half] = d * static_cast<float>(scale);
  }
  scales.min = F16ToFloat(block.dmin) * static_cast<float>(block.min);
  return scales;
}

void DecodeWeights(DType type, const std::uint8_t* row, std::uint32_t begin, std::uint32_t count,
                   float* target) {
  DCHECK(count <= kQuantElements);
  switch (type) {
    case DType::kF32:
      std::memcpy(target, row + std::size_t{begin} * sizeof(float), count * sizeof(float));
      return;
    case DType::kF16:
      for (std::uint32_t i = 0; i < count; ++i)
        target[i] = F16ToFloat(Load16(row + 2 * (std::size_t{begin} + i)));
      return;
    case DType::kBf16:
      for (std::uint32_t i = 0; i < count; ++i)
        target[i] = Bf16ToFloat(Load16(row + 2 * (std::size_t{begin} + i)));
      return;
    default:
      break;
  }
  QuantBlock block;
  DecodeQuantBlock(type, row, begin / kQuantElements, &block);
  const QuantScales scales = DecodeScales(type, block);
  const std::int32_t zero = QuantZero(type);
  for (std::uint32_t i = 0; i < kQuantElements; ++i)
    target[i] = scales.scale[i / 16] * static_cast<float>(block.q[i] - zero) - scales.min;
}

}  // namespace kvrm
