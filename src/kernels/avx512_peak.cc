// SPDX-License-Identifier: Apache-2.0
// What AVX-512 can do at most. Compiled with the flags of avx512.cc; HAZARD: as there.
//
// A register of results is ready for its next sum after 4 or 5 cycles and two units take one each a
// cycle, so at least 10 sums must be under way: 24 are, and with the two operands the 32 registers
// hold everything. The instructions are written out, so that nothing else is measured and none is
// left out or hoisted.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own header trips it (GCC bug 105593).
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx_peak.h"

namespace kvrm {
namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 32")

constexpr int kSums = 24;
constexpr int kVectorBytes = 64;

uint64_t Read(const void* data, size_t bytes) {
  constexpr int kChains = kPeakReadUnit / kVectorBytes;
  const char* at = static_cast<const char*>(data);
  __m512i sum[kChains] = {};
  for (const char* const end = at + bytes; at != end; at += kPeakReadUnit) {
    KVRM_UNROLL
    for (int i = 0; i < kChains; ++i)
      sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(at + i * kVectorBytes));
  }
  KVRM_UNROLL
  for (int i = 1; i < kChains; ++i)
    sum[0] = _mm512_xor_si512(sum[0], sum[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(sum[0]));
}

uint64_t Int8(uint64_t rounds) {
  const __m512i a = _mm512_set1_epi32(static_cast<int>(rounds));
  const __m512i b = _mm512_set1_epi32(0x01030507);
  __m512i sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm512_set1_epi32(i);
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i)
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum[i]) : "v"(a), "v"(b));
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm512_add_epi32(sum[0], sum[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(sum[0]));
}

uint64_t Bf16(uint64_t rounds) {
  const __m512i a = _mm512_set1_epi32(0x3f803f80);  // pairs of 1.0
  const __m512i b = _mm512_set1_epi32(0x3e803e80);  // pairs of 0.25
  __m512 sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i)
      __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum[i]) : "v"(a), "v"(b));
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(_mm512_castps_si512(sum[0])));
}

uint64_t F32(uint64_t rounds) {
  const __m512 a = _mm512_set1_ps(static_cast<float>(rounds));
  const __m512 b = _mm512_set1_ps(0.25f);
  __m512 sum[kSums];
  KVRM_UNROLL
  for (int i = 0; i < kSums; ++i)
    sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (uint64_t r = 0; r < rounds; ++r) {
    KVRM_UNROLL
    for (int i = 0; i < kSums; ++i)
      __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum[i]) : "v"(a), "v"(b));
  }
  KVRM_UNROLL
  for (int i = 1; i < kSums; ++i)
    sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(_mm512_castps_si512(sum[0])));
}

}  // namespace

extern const PeakLoops kAvx512Peak = {
    .name = "avx512",
    .read = Read,
    .loops = {{"vpdpbusd zmm", PeakKind::kInt8, PeakFeature::kNone, kSums * 64, Int8},
              {"vdpbf16ps zmm", PeakKind::kBf16, PeakFeature::kAvx512Bf16, kSums * 32, Bf16},
              {"vfmadd zmm", PeakKind::kF32, PeakFeature::kNone, kSums * 16, F32},
              {}}};

}  // namespace kvrm
