// SPDX-License-Identifier: Apache-2.0
// Vectors of 16 floats: what the AVX-512 files share. Compiled with the flags of those files only.
//
// HAZARD: an ISA file includes nothing that can emit an inline function or a template: no STL,
// nothing from base/. The linker keeps one copy of each such function, and may keep the AVX-512 one
// for the whole program, which then dies with SIGILL on a machine without it (docs/decisions/0008).
// So everything here has internal linkage, and every ISA file exports one symbol.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own header trips it (GCC bug 105593).
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu_kernels.h"
#include "kernels/q8_scale.h"

namespace kvrm {

// The parts of the table in other files than avx512.cc.
void Avx512MatMul(const MatMulArgs& args);
void Avx512AttentionUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial);

namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 16")

constexpr uint32_t kLanes = 16;
constexpr uint32_t kBlock = 32;
constexpr float kInfinity = __builtin_inff();

inline __mmask16 TailMask(uint32_t n) {
  return n >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
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

template <DType kType>
constexpr uint32_t kElementBytes = kType == DType::kF32 ? 4 : 2;

template <DType kType>
__m512 Widen(__m256i bits) {
  if constexpr (kType == DType::kF16) return _mm512_cvtph_ps(bits);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// 16 elements as floats.
template <DType kType>
__m512 LoadFloats(const uint8_t* p) {
  if constexpr (kType == DType::kF32) {
    return _mm512_loadu_ps(p);
  } else {
    return Widen<kType>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
}

// The elements of `mask`; no others are touched.
template <DType kType>
__m512 LoadSome(__mmask16 mask, const uint8_t* p) {
  if constexpr (kType == DType::kF32) {
    return _mm512_maskz_loadu_ps(mask, p);
  } else {
    return Widen<kType>(_mm256_maskz_loadu_epi16(mask, p));
  }
}

// Rounds to nearest even, as base/float16.h does; NaN stays NaN.
template <DType kType>
__m256i NarrowFloats(__m512 x) {
  if constexpr (kType == DType::kF16)
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

// Of 16 signed bytes.
inline int32_t SumOfBytes(__m128i q) {
  const __m128i sums = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}

// As in scalar.cc, operation by operation, so that the prepared bytes are the same.
inline Q8Scale QuantizeBlock(const float* x, int8_t* q) {
  const __m512 x0 = _mm512_loadu_ps(x);
  const __m512 x1 = _mm512_loadu_ps(x + kLanes);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const uint32_t greatest = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
  const bool usable = IsQ8Usable(greatest);
  const float scale = usable ? RoundedQ8Scale(greatest) : 1.0f;
  const __mmask16 mask = TailMask(usable ? kLanes : 0);
  const __m512 inverse = _mm512_set1_ps(1.0f / scale);
  const __m128i q0 =
      _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x0, inverse)));
  const __m128i q1 =
      _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x1, inverse)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), q0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + kLanes), q1);
  return MakeQ8Scale(greatest, scale, SumOfBytes(q0), SumOfBytes(q1));
}

// e^x = 2^n e^r with |r| <= ln 2 / 2: the Taylor polynomial of degree 7 is off by less than
// r^8 / 8! = 5.2e-9, and ln 2 is split so that x - n ln 2 is exact to the last bits. Below -104 the
// result is 0, above 89 Inf; NaN passes (the second operand of min and max wins).
inline __m512 Exp(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}
}  // namespace
}  // namespace kvrm
