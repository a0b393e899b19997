// SPDX-License-Identifier: Apache-2.0
#include "model/random_blocks.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"

namespace kvrm {
namespace {

// Standard deviations of n equally likely whole numbers: sqrt((n^2 - 1) / 12).
constexpr double kSpread255 = 73.6;
constexpr double kSpread16 = 4.61;
constexpr double kSpread32 = 9.23;
constexpr double kSpread64 = 18.5;
// Middles of the integer scales of the K types: 6 bits without, 8 bits with a sign.
constexpr int kMeanScale6 = 32;
constexpr int kMeanScale8 = 64;

void PutF16(std::byte* target, double value) {
  const std::uint16_t bits = FloatToF16(static_cast<float>(value));
  std::memcpy(target, &bits, sizeof(bits));
}

void PutRandom(std::byte* target, std::size_t bytes, Rng* rng) {
  for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
    const std::uint64_t word = rng->Next();
    std::memcpy(target + i, &word, std::min(sizeof(word), bytes - i));
  }
}

// In [0.75, 1.25), so that no two blocks have one scale.
double Jitter(Rng* rng) {
  return 0.75 + 0.5 * rng->Uniform();
}

// For scales of types whose quants lie from -8 to 7, say: with one sign all rows would lean the
// same way, and layer after layer would make more of it.
double Sign(Rng* rng) {
  return rng->Below(2) == 0 ? 1.0 : -1.0;
}

// Uniform in [-sqrt(3), sqrt(3)) deviations.
float UniformFloat(double deviation, Rng* rng) {
  return static_cast<float>((rng->Uniform() - 0.5) * deviation * 2 * std::sqrt(3.0));
}

// 8 pairs of scale and minimum, equal in each pair, as both K types with minima store them.
void PutScalesAndMinima(std::byte* target, Rng* rng) {
  std::uint8_t scale[8];
  for (std::uint8_t& s : scale)
    s = static_cast<std::uint8_t>(rng->Between(kMeanScale6 - 12, kMeanScale6 + 12));
  for (std::size_t i = 0; i < 4; ++i) {
    const int first = scale[i] | ((scale[i + 4] >> 4) << 6);
    const int low = scale[i + 4] & 15;
    target[i] = target[i + 4] = static_cast<std::byte>(first);
    target[i + 8] = static_cast<std::byte>(low | (low << 4));
  }
}

// Values d (scale q - center min) with min equal to scale, and center the middle of q.
void PutMinimumBlock(std::byte* block, std::size_t quant_bytes, double d, double center, Rng* rng) {
  PutF16(block, d);
  PutF16(block + 2, d * center);
  PutScalesAndMinima(block + 4, rng);
  PutRandom(block + 16, quant_bytes, rng);
}

void PutQ6KBlock(std::byte* block, double deviation, Rng* rng) {
  constexpr std::size_t kQuantBytes = 192;
  PutRandom(block, kQuantBytes, rng);
  for (std::size_t i = 0; i < 16; ++i) {
    const auto scale = static_cast<int>(rng->Between(kMeanScale8 - 24, kMeanScale8 + 24));
    block[kQuantBytes + i] = static_cast<std::byte>(rng->Below(2) == 0 ? scale : -scale);
  }
  PutF16(block + kQuantBytes + 16, deviation / (kMeanScale8 * kSpread64) * Jitter(rng));
}

void PutQ8Block(std::byte* block, double deviation, Rng* rng) {
  PutF16(block, deviation / kSpread255 * Jitter(rng));
  PutRandom(block + 2, 32, rng);
  // -128 is what no quantiser writes.
  for (std::size_t i = 2; i < 34; ++i) {
    if (block[i] == std::byte{0x80}) block[i] = std::byte{0x81};
  }
}

void PutBlock(DType type, double deviation, Rng* rng, std::byte* block) {
  switch (type) {
    case DType::kF32: {
      const float value = UniformFloat(deviation, rng);
      std::memcpy(block, &value, sizeof(value));
      return;
    }
    case DType::kF16:
      return PutF16(block, static_cast<double>(UniformFloat(deviation, rng)));
    case DType::kBf16: {
      const std::uint16_t bits = FloatToBf16(UniformFloat(deviation, rng));
      std::memcpy(block, &bits, sizeof(bits));
      return;
    }
    case DType::kQ8_0:
      return PutQ8Block(block, deviation, rng);
    case DType::kQ4_0:
      PutF16(block, deviation / kSpread16 * Jitter(rng) * Sign(rng));
      return PutRandom(block + 2, 16, rng);
    case DType::kQ5_0:
      PutF16(block, deviation / kSpread32 * Jitter(rng) * Sign(rng));
      return PutRandom(block + 2, 20, rng);
    case DType::kQ4_K:
      return PutMinimumBlock(block, 128, deviation / (kMeanScale6 * kSpread16) * Jitter(rng), 7.5,
                             rng);
    case DType::kQ5_K:
      return PutMinimumBlock(block, 160, deviation / (kMeanScale6 * kSpread32) * Jitter(rng), 15.5,
                             rng);
    case DType::kQ6_K:
      return PutQ6KBlock(block, deviation, rng);
  }
}

}  // namespace

void FillRandomBlocks(DType type, double deviation, Rng* rng, std::span<std::byte> target) {
  const std::size_t block_bytes = DTypeBlockBytes(type);
  CHECK(target.size() % block_bytes == 0 && deviation >= 1e-3 && deviation <= 1);
  for (std::size_t at = 0; at < target.size(); at += block_bytes)
    PutBlock(type, deviation, rng, &target[at]);
}

}  // namespace kvrm
