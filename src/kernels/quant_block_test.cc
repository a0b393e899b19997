// SPDX-License-Identifier: Apache-2.0
// The block formats against an encoder written from the other side: where each element's bits go.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/test_weights.h"

namespace kvrm {
namespace {

// What a super-block of 256 (or eight blocks of 32) is made of.
struct Parts {
  int q[256];     // unsigned
  int scale[16];  // per 16 elements; Q4_K and Q5_K use the even ones, Q6_K is signed
  int min[8];     // per 32 elements
  double d = 0.125;
  double dmin = 0.5;
};

Parts RandomParts(Rng& rng, DType type) {
  const int bits = type == DType::kQ8_0                           ? 8
                   : type == DType::kQ6_K                         ? 6
                   : type == DType::kQ5_0 || type == DType::kQ5_K ? 5
                                                                  : 4;
  Parts parts;
  for (int& q : parts.q)
    q = static_cast<int>(rng.Below(std::uint64_t{1} << bits));
  for (int& scale : parts.scale)
    scale = static_cast<int>(rng.Below(64)) - (type == DType::kQ6_K ? 100 : 0);
  for (int& min : parts.min)
    min = static_cast<int>(rng.Below(64));
  return parts;
}

// Sets bits [shift, ...) of a byte of zeroed memory.
void Put(std::vector<std::uint8_t>& bytes, std::size_t at, int bits, int shift = 0) {
  bytes[at] = static_cast<std::uint8_t>(bytes[at] | ((bits << shift) & 255));
}

void EncodeSmall(DType type, const Parts& parts, int block, std::vector<std::uint8_t>& bytes) {
  const std::size_t size = DTypeBlockBytes(type);
  const std::size_t start = static_cast<std::size_t>(block) * size;
  PutHalf(&bytes[start], parts.d);
  for (std::size_t j = 0; j < 32; ++j) {
    const int q = parts.q[static_cast<std::size_t>(block) * 32 + j];
    if (type == DType::kQ8_0) {
      Put(bytes, start + 2 + j, q - 128);
      continue;
    }
    Put(bytes, start + size - 16 + j % 16, q & 15, j < 16 ? 0 : 4);
    if (type == DType::kQ5_0) Put(bytes, start + 2 + j / 8, q >> 4, static_cast<int>(j % 8));
  }
}

void EncodeK45(DType type, const Parts& parts, std::vector<std::uint8_t>& bytes) {
  PutHalf(&bytes[0], parts.d);
  PutHalf(&bytes[2], parts.dmin);
  for (std::size_t j = 0; j < 8; ++j) {
    const int scale = parts.scale[2 * j], min = parts.min[j];
    if (j < 4) {
      Put(bytes, 4 + j, scale);
      Put(bytes, 8 + j, min);
    } else {
      Put(bytes, 4 + j - 4, scale >> 4, 6);
      Put(bytes, 8 + j - 4, min >> 4, 6);
      Put(bytes, 12 + j - 4, scale & 15);
      Put(bytes, 12 + j - 4, min & 15, 4);
    }
  }
  const std::size_t low = type == DType::kQ5_K ? 48 : 16;
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t block = i / 32;
    Put(bytes, low + block / 2 * 32 + i % 32, parts.q[i] & 15, block % 2 ? 4 : 0);
    if (type == DType::kQ5_K) Put(bytes, 16 + i % 32, parts.q[i] >> 4, static_cast<int>(block));
  }
}

void EncodeQ6(const Parts& parts, std::vector<std::uint8_t>& bytes) {
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128, quarter = i % 128 / 32, j = i % 32;
    Put(bytes, half * 64 + quarter % 2 * 32 + j, parts.q[i] & 15, quarter < 2 ? 0 : 4);
    Put(bytes, 128 + half * 32 + j, parts.q[i] >> 4, static_cast<int>(2 * quarter));
  }
  for (std::size_t i = 0; i < 16; ++i)
    Put(bytes, 192 + i, parts.scale[i]);
  PutHalf(&bytes[208], parts.d);
}

std::vector<std::uint8_t> Encode(DType type, const Parts& parts) {
  std::vector<std::uint8_t> bytes(FileRowBytes(type, 256));
  if (type == DType::kQ6_K) {
    EncodeQ6(parts, bytes);
  } else if (DTypeBlockElements(type) == 256) {
    EncodeK45(type, parts, bytes);
  } else {
    for (int block = 0; block < 8; ++block)
      EncodeSmall(type, parts, block, bytes);
  }
  return bytes;
}

double Expected(DType type, const Parts& parts, std::size_t i) {
  const int q = parts.q[i];
  switch (type) {
    case DType::kQ8_0:
      return parts.d * (q - 128);
    case DType::kQ4_0:
      return parts.d * (q - 8);
    case DType::kQ5_0:
      return parts.d * (q - 16);
    case DType::kQ6_K:
      return parts.d * parts.scale[i / 16] * (q - 32);
    default:
      return parts.d * parts.scale[i / 32 * 2] * q - parts.dmin * parts.min[i / 32];
  }
}

// d and dmin are powers of two, so every expected value is exact in float.
TEST(QuantBlock, EveryFormatDecodesToItsDefinition) {
  for (const DType type : kAllTypes) {
    if (!IsQuantised(type)) continue;
    Rng rng(static_cast<std::uint64_t>(type));
    for (int round = 0; round < 20; ++round) {
      const Parts parts = RandomParts(rng, type);
      const std::vector<std::uint8_t> bytes = Encode(type, parts);
      for (std::uint32_t begin = 0; begin < 256; begin += kQuantElements) {
        float values[kQuantElements];
        DecodeWeights(type, bytes.data(), begin, kQuantElements, values);
        for (std::uint32_t i = 0; i < kQuantElements; ++i)
          ASSERT_EQ(static_cast<double>(values[i]), Expected(type, parts, begin + i))
              << DTypeName(type) << " element " << begin + i;
      }
    }
  }
}

TEST(QuantBlock, ARowsBytesAreItsBlocksBytes) {
  EXPECT_EQ(FileRowBytes(DType::kF32, 100), 400u);
  EXPECT_EQ(FileRowBytes(DType::kQ8_0, 96), 3u * 34);
  EXPECT_EQ(FileRowBytes(DType::kQ4_K, 512), 2u * 144);
  EXPECT_EQ(FileRowBytes(DType::kQ6_K, 1u << 31), (std::uint64_t{1} << 23) * 210);
}

}  // namespace
}  // namespace kvrm
