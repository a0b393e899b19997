// SPDX-License-Identifier: Apache-2.0
// What AVX2 can do at most. Compiled with the flags of avx2.cc; HAZARD: as there.
//
// As in avx512_peak.cc, with 12 sums in 16 registers.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx_peak.h"

namespace kvrm {
namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 32")

constexpr int kSums = 12;
constexpr int kVectorBytes = 32;

uint64_t Word(__m256i v) {
  return static_cast<uint64_t>(_mm256_extract_epi64(v, 0) ^ _mm256_extract_epi64(v, 1) ^
                               _mm256_extract_epi64(v, 2) ^ _mm256_extract_epi64(v, 3));
}

uint64_t Read(const void* data, size_t bytes) {
  constexpr int kChains = 8;
  const char* at = static_cast<const char*>(data);
  __m256i sum[kChains] = {};
  for (const char* const end = at + bytes; at != end; at += kChains * kVectorBytes) {
    KVRM_UNROLL
    for (int i = 0; i < kChains; ++i) {
      const void* vector = at + i * kVectorBytes;
      sum[i] = _mm256_xor_si256(sum[i], _mm256_load_si256(static_cast<const __m256i*>(vector)));
    }
  }
  KVRM_UNROLL
  for (int i = 1; i < kChains; ++i)
    sum[0] = _mm256_xor_si256(sum[0], sum[i]);
  return Word(sum[0]);
}

// Products of bytes in pairs, pairs of pairs, sums: what stands for vpdpbusd without AVX-VNNI.
uint64_t Int8(uint64_t rounds) {
  const __m256i b = _mm256_set1_epi32(0x01030507);
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_set1_epi32(static_cast<int>(rounds));
  __m256i sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm256_set1_epi32(i);
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i) {
      __m256i product;
      __asm__ volatile("vpmaddubsw %4, %3, %1\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
                       : "+x"(sum[i]), "=&x"(product)
                       : "x"(ones), "x"(a), "x"(b));
    }
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm256_add_epi32(sum[0], sum[i]);
  return Word(sum[0]);
}

uint64_t Int8Vnni(uint64_t rounds) {
  const __m256i a = _mm256_set1_epi32(static_cast<int>(rounds));
  const __m256i b = _mm256_set1_epi32(0x01030507);
  __m256i sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm256_set1_epi32(i);
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i)
      __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum[i]) : "x"(a), "x"(b));
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm256_add_epi32(sum[0], sum[i]);
  return Word(sum[0]);
}

uint64_t F32(uint64_t rounds) {
  const __m256 a = _mm256_set1_ps(static_cast<float>(rounds));
  const __m256 b = _mm256_set1_ps(0.25f);
  __m256 sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i)
      __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum[i]) : "x"(a), "x"(b));
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return Word(_mm256_castps_si256(sum[0]));
}

}  // namespace

extern const PeakLoops kAvx2Peak = {
    .name = "avx2",
    .read = Read,
    .loops = {{"vpmaddubsw ymm", PeakKind::kInt8, PeakFeature::kNone, kSums * 32, Int8},
              {"vpdpbusd ymm", PeakKind::kInt8, PeakFeature::kAvxVnni, kSums * 32, Int8Vnni},
              {"vfmadd ymm", PeakKind::kF32, PeakFeature::kNone, kSums * 8, F32},
              {}}};

}  // namespace kvrm
