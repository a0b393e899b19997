// SPDX-License-Identifier: Apache-2.0
// The loops of plain C++, and which loops this processor runs.
#include <cpuid.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/avx_peak.h"

namespace kvrm {
namespace {

constexpr int kSums = 8;

std::uint64_t Read(const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  std::uint64_t sum[kSums] = {};
  for (const char* const end = at + bytes; at != end; at += sizeof(sum)) {
    std::uint64_t words[kSums];
    std::memcpy(words, at, sizeof(words));
    for (int i = 0; i < kSums; ++i)
      sum[i] ^= words[i];
  }
  std::uint64_t all = 0;
  for (const std::uint64_t word : sum)
    all ^= word;
  return all;
}

std::uint64_t Int8(std::uint64_t rounds) {
  std::int32_t a = static_cast<std::int8_t>(rounds);
  std::uint32_t sum[kSums];
  for (int i = 0; i < kSums; ++i)
    sum[i] = static_cast<std::uint32_t>(i);
  for (std::uint64_t r = 0; r < rounds; ++r) {
    // A product for each sum, though they are all the same.
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("" : "+r"(a));
      sum[i] += static_cast<std::uint32_t>(a * a);
    }
  }
  std::uint64_t all = 0;
  for (const std::uint32_t s : sum)
    all += s;
  return all;
}

std::uint64_t F32(std::uint64_t rounds) {
  float a = static_cast<float>(rounds);
  float sum[kSums];
  for (int i = 0; i < kSums; ++i)
    sum[i] = static_cast<float>(i);
  for (std::uint64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("" : "+x"(a));
      sum[i] += a * 0.25f;
    }
  }
  std::uint64_t all = 0;
  for (const float s : sum)
    all += std::bit_cast<std::uint32_t>(s);
  return all;
}

// What the run-time library of older compilers does not know by name.
bool HasCpuid7Sub1(unsigned bit) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && ((eax >> bit) & 1u) != 0;
}

}  // namespace

extern const PeakLoops kScalarPeak = {
    .name = "scalar",
    .read = Read,
    .loops = {{"C++ int", PeakKind::kInt8, PeakFeature::kNone, kSums, Int8},
              {"C++ float", PeakKind::kF32, PeakFeature::kNone, kSums, F32},
              {},
              {}}};

const PeakLoops& FindPeakLoops(const char* name) {
  if (std::strncmp(name, kAvx512Peak.name, std::strlen(kAvx512Peak.name)) == 0) return kAvx512Peak;
  if (std::strcmp(name, kAvx2Peak.name) == 0) return kAvx2Peak;
  return kScalarPeak;
}

bool CanRun(const PeakLoop& loop) {
  if (loop.instruction == nullptr) return false;
  switch (loop.feature) {
    case PeakFeature::kNone:
      return true;
    case PeakFeature::kAvxVnni:
      return HasCpuid7Sub1(4);
    case PeakFeature::kAvx512Bf16:
      return HasCpuid7Sub1(5);
  }
  return false;
}

}  // namespace kvrm
