// SPDX-License-Identifier: Apache-2.0
// Vectors of 8 floats: what the AVX2 files share. The hazard of avx512_lanes.h holds here too.
//
// The layout of the weights is that of the AVX-512 files, a group of 16 rows taken as two vectors
// of 8; so is the rule that every output element is one lane with one chain of sums.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu_kernels.h"
#include "kernels/q8_scale.h"

namespace kvrm {

// The parts of the table in other files than avx2.cc.
void Avx2MatMul(const MatMulArgs& args);
void Avx2AttentionUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial);

namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 16")

constexpr uint32_t kLanes = 8;
constexpr uint32_t kGroup = 16;  // rows or tokens, two vectors
constexpr uint32_t kBlock = 32;
constexpr float kInfinity = __builtin_inff();

// All ones in the lanes [0, n).
inline __m256i TailMask(uint32_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < kLanes ? n : kLanes)), lanes);
}

inline const uint8_t* Bytes(const void* p) {
  return static_cast<const uint8_t*>(p);
}

template <typename T>
T LoadAs(const uint8_t* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

inline __m128i Load128(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

inline __m256i Load256(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

template <DType kType>
constexpr uint32_t kElementBytes = kType == DType::kF32 ? 4 : 2;

// 8 elements as floats.
template <DType kType>
__m256 LoadFloats(const uint8_t* p) {
  if constexpr (kType == DType::kF32)
    return _mm256_castsi256_ps(Load256(p));
  else if constexpr (kType == DType::kF16)
    return _mm256_cvtph_ps(Load128(p));
  else
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Load128(p)), 16));
}

// The first `count` elements, zeros after them; no others are touched.
template <DType kType>
__m256 LoadSome(uint32_t count, const uint8_t* p) {
  alignas(32) uint8_t copy[kLanes * 4] = {};
  __builtin_memcpy(copy, p, count * kElementBytes<kType>);
  return LoadFloats<kType>(copy);
}

inline float MaxOf(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

inline float SumOf(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// As in scalar.cc, operation by operation, so that the prepared bytes are the same.
inline Q8Scale QuantizeBlock(const float* x, int8_t* q) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (uint32_t i = 0; i < kBlock; i += kLanes) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
  }
  alignas(32) uint32_t each[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(each), most);
  uint32_t greatest = 0;
  for (uint32_t i = 0; i < kLanes; ++i)
    greatest = each[i] > greatest ? each[i] : greatest;
  const bool usable = IsQ8Usable(greatest);
  const float scale = usable ? RoundedQ8Scale(greatest) : 1.0f;
  const __m256 inverse = _mm256_set1_ps(1.0f / scale);
  const __m256i keep = _mm256_set1_epi32(usable ? -1 : 0);
  int32_t sum[2];
  for (uint32_t half = 0; half < 2; ++half) {
    const float* source = x + 16 * half;
    const __m256i a =
        _mm256_and_si256(keep, _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(source), inverse)));
    const __m256i b = _mm256_and_si256(
        keep, _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(source + kLanes), inverse)));
    // Packing works within 128 bits: the order is a0 b0 a1 b1 until the permutation.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16 * half), bytes);
    // Sums of at most 16 * 127 are exact in float.
    sum[half] = static_cast<int32_t>(SumOf(_mm256_cvtepi32_ps(_mm256_add_epi32(a, b))));
  }
  return MakeQ8Scale(greatest, scale, sum[0], sum[1]);
}

// 2^n. Requires: -126 <= n <= 127.
inline __m256 PowerOfTwo(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// As in avx512.cc. 2^n is multiplied in two halves, so that n from -150 to 128 gives subnormal
// numbers, 0 and Inf as it should.
inline __m256 Exp(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  p = _mm256_mul_ps(p, PowerOfTwo(half));
  return _mm256_mul_ps(p, PowerOfTwo(_mm256_sub_epi32(whole, half)));
}
}  // namespace
}  // namespace kvrm
