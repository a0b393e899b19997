// SPDX-License-Identifier: Apache-2.0
// What the tests of this floor share: the tables this processor runs, random numbers and random
// weights in the file formats.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/float16.h"
#include "base/rng.h"
#include "kernels/cpu_kernels.h"
#include "kernels/quant_block.h"

namespace kvrm {

inline constexpr double kRounding = 0x1p-24;  // The relative error of one float operation.

inline std::vector<const CpuKernels*> Tables() {
  std::vector<const CpuKernels*> tables;
  for (const char* name : {"reference", "scalar", "avx2", "avx512", "avx512_bf16"}) {
    if (const CpuKernels* table = FindCpuKernels(name)) tables.push_back(table);
  }
  return tables;
}

// Roughly normal: the sum of four uniform numbers, with unit variance.
inline float Normal(Rng& rng) {
  double sum = 0;
  for (int i = 0; i < 4; ++i)
    sum += rng.Uniform() - 0.5;
  return static_cast<float>(sum * std::sqrt(3.0));
}

inline std::vector<float> Normals(Rng& rng, std::size_t count) {
  std::vector<float> values(count);
  for (float& value : values)
    value = Normal(rng);
  return values;
}

inline void PutHalf(std::uint8_t* target, double value) {
  const std::uint16_t bits = FloatToF16(static_cast<float>(value));
  std::memcpy(target, &bits, sizeof(bits));
}

// Random bits with sensible scales: every bit pattern of quants, 6-bit scales and minima occurs.
inline std::vector<std::uint8_t> RandomWeights(Rng& rng, DType type, std::uint32_t rows,
                                               std::uint32_t cols) {
  std::vector<std::uint8_t> bytes(rows * FileRowBytes(type, cols));
  if (type == DType::kF32 || type == DType::kF16 || type == DType::kBf16) {
    for (std::size_t i = 0; i < std::size_t{rows} * cols; ++i) {
      const float value = Normal(rng);
      const std::uint16_t bits = type == DType::kF16 ? FloatToF16(value) : FloatToBf16(value);
      if (type == DType::kF32) {
        std::memcpy(&bytes[4 * i], &value, 4);
      } else {
        std::memcpy(&bytes[2 * i], &bits, 2);
      }
    }
    return bytes;
  }
  for (std::uint8_t& byte : bytes)
    byte = static_cast<std::uint8_t>(rng.Next() >> 56);
  const std::size_t block = DTypeBlockBytes(type);
  for (std::size_t i = 0; i < bytes.size(); i += block) {
    const double d = 0.01 * (0.5 + rng.Uniform());
    PutHalf(&bytes[i + (type == DType::kQ6_K ? 208 : 0)], d);
    if (type == DType::kQ4_K || type == DType::kQ5_K) PutHalf(&bytes[i + 2], d * 4);
  }
  return bytes;
}

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,  DType::kBf16,
                                      DType::kQ8_0, DType::kQ4_0, DType::kQ5_0,
                                      DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

inline bool IsQuantised(DType type) {
  return DTypeBlockElements(type) > 1;
}

}  // namespace kvrm
