// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels. Compiled with -mavx2 -mfma -mf16c, this file only.
//
// HAZARD: include nothing here that can emit an inline function or a template: no STL, nothing from
// base/. The linker keeps one copy of each such function, and may keep the AVX2 one for the whole
// program, which then dies with SIGILL on a machine without it (docs/decisions/0008). Everything
// but the table has internal linkage.
//
// The layout of the weights is that of avx512.cc, a group of 16 rows taken as two vectors of 8; so
// is the rule that every output element is one lane with one chain of sums, whatever the blocking.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 16")

constexpr uint32_t kLanes = 8;
constexpr uint32_t kGroup = 16;  // rows or tokens, two vectors
constexpr uint32_t kBlock = 32;
constexpr float kInfinity = __builtin_inff();

// All ones in the lanes [0, n).
__m256i TailMask(uint32_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < kLanes ? n : kLanes)), lanes);
}

const uint8_t* Bytes(const void* p) {
  return static_cast<const uint8_t*>(p);
}

template <typename T>
T LoadAs(const uint8_t* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

__m128i Load128(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

__m256i Load256(const uint8_t* p) {
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

float MaxOf(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

float SumOf(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// 2^n. Requires: -126 <= n <= 127.
__m256 PowerOfTwo(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// As in avx512.cc. 2^n is multiplied in two halves, so that n from -150 to 128 gives subnormal
// numbers, 0 and Inf as it should.
__m256 Exp(__m256 x) {
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

// y of one token and 8 outputs.
void StoreOutputs(const MatMulArgs& args, uint32_t token, uint32_t out, __m256 sum) {
  if (out >= args.out_end) return;
  const __m256i mask = TailMask(args.out_end - out);
  float* y = args.y + token * args.y_stride + out;
  if (args.bias != nullptr) sum = _mm256_add_ps(sum, _mm256_maskload_ps(args.bias + out, mask));
  if (args.accumulate) sum = _mm256_add_ps(_mm256_maskload_ps(y, mask), sum);
  _mm256_maskstore_ps(y, mask, sum);
}

// The columns of one pass. All of them, but for the negative control of the invariance suite.
struct Columns {
  uint32_t begin;
  uint32_t end;
};

template <DType kType, uint32_t kTokens, uint32_t kGroups>
struct FloatTile {
  static void Run(const MatMulArgs& args, uint64_t group_bytes, uint32_t token, uint32_t out,
                  Columns columns) {
    const uint8_t* w[kGroups];
    const uint8_t* x[kTokens];
    __m256 sum[kTokens][2 * kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      w[g] = Bytes(args.w.data) + (out / kGroup + g) * group_bytes;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      KVRM_UNROLL
      for (uint32_t g = 0; g < 2 * kGroups; ++g)
        sum[t][g] = _mm256_setzero_ps();
    }
    for (size_t k = columns.begin; k < columns.end; ++k) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < 2 * kGroups; ++g) {
        const __m256 weights =
            LoadFloats<kType>(w[g / 2] + (k * kGroup + g % 2 * kLanes) * kElementBytes<kType>);
        KVRM_UNROLL
        for (uint32_t t = 0; t < kTokens; ++t)
          sum[t][g] = _mm256_fmadd_ps(
              weights, _mm256_set1_ps(LoadAs<float>(x[t] + k * sizeof(float))), sum[t][g]);
      }
    }
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < 2 * kGroups; ++g)
        StoreOutputs(args, token + t, out + g * kLanes, sum[t][g]);
    }
  }
};

// A single token takes four groups at a time, to have eight chains of multiply-adds under way.
template <DType kType>
void FloatColumns(const MatMulArgs& args, Columns columns) {
  const uint64_t bytes = TiledGroupBytes(kType, args.w.cols);
  for (uint32_t out = args.out_begin; out < args.out_end;) {
    const uint32_t groups = args.out_end - out > 3 * kGroup ? 4 : 1;
    for (uint32_t g = 0; g < groups; ++g) {
      uint32_t t = 0;
      for (; args.num_tokens - t >= 4; t += 4)
        FloatTile<kType, 4, 1>::Run(args, bytes, t, out + g * kGroup, columns);
      for (; args.num_tokens - t >= 2; t += 2)
        FloatTile<kType, 2, 1>::Run(args, bytes, t, out + g * kGroup, columns);
      if (groups == 1 && t < args.num_tokens)
        FloatTile<kType, 1, 1>::Run(args, bytes, t, out, columns);
    }
    if (groups == 4 && args.num_tokens % 2 == 1)
      FloatTile<kType, 1, 4>::Run(args, bytes, args.num_tokens - 1, out, columns);
    out += groups * kGroup;
  }
}

template <DType kType>
constexpr bool kHasMinimum = kType == DType::kQ4_K || kType == DType::kQ5_K;

template <DType kType>
constexpr uint32_t kQuantBytes = kType == DType::kQ8_0                            ? 512
                                 : kType == DType::kQ4_0 || kType == DType::kQ4_K ? 256
                                 : kType == DType::kQ6_K                          ? 384
                                                                                  : 320;

// Log2 of the zero point (QuantZero in quant_block.h), for the types without a minimum but Q8_0,
// whose values are made signed first.
template <DType kType>
constexpr int kZeroShift = kType == DType::kQ4_0   ? 3
                           : kType == DType::kQ5_0 ? 4
                                                   : 5;

// How many pair sums u0 a0 + u1 a1 a 16-bit lane holds without overflow, |a| <= 127: 8 of
// 2 * 15 * 127 = 3,810; 4 of 2 * 31 * 127 = 7,874; 2 of 2 * 63 * 127 = 16,002; and for Q8_0, where
// u is the magnitude of a signed byte, 1 of 2 * 128 * 127 = 32,512. So nothing saturates.
template <DType kType>
constexpr int kPairSums = kQuantBytes<kType> == 256   ? 8
                          : kQuantBytes<kType> == 320 ? 4
                          : kQuantBytes<kType> == 384 ? 2
                                                      : 1;

// Moves bit kFrom of every byte to bit kTo; other bits are garbage for the caller to mask.
template <int kFrom, int kTo>
__m256i MoveBit(__m256i x) {
  if constexpr (kFrom < kTo)
    return _mm256_slli_epi16(x, kTo - kFrom);
  else if constexpr (kFrom > kTo)
    return _mm256_srli_epi16(x, kFrom - kTo);
  else
    return x;
}

// 8 rows of vector kV of a block: 4 columns each, unsigned bytes; signed for Q8_0.
template <DType kType, int kV>
__m256i LoadQuants(const uint8_t* quants) {
  if constexpr (kType == DType::kQ8_0) {
    return _mm256_xor_si256(Load256(quants + 64 * kV), _mm256_set1_epi8(-128));
  } else {
    const __m256i packed = Load256(quants + 64 * (kV % 4));
    constexpr int kNibble = kV < 4 ? 0 : 4;
    const __m256i low = _mm256_and_si256(MoveBit<kNibble, 0>(packed), _mm256_set1_epi8(15));
    if constexpr (kQuantBytes<kType> == 320) {
      const __m256i high = MoveBit<kV, 4>(Load256(quants + 256));
      return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(16)));
    } else if constexpr (kQuantBytes<kType> == 384) {
      const __m256i high = MoveBit<2 * (kV % 4), 4>(Load256(quants + 256 + 64 * (kV / 4)));
      return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(48)));
    } else {
      return low;
    }
  }
}

template <DType kType, uint32_t kTokens>
struct QuantTile {
  struct State {
    const uint8_t* quants;  // of 8 of the group's rows
    const uint8_t* scales;  // of the whole group
    const uint8_t* supers;
    const uint8_t* x[kTokens];
    size_t act_scales;  // bytes from a row of activations to its Q8Scale[]
    uint32_t row;       // first of the 8 within the group
    __m256 sum[kTokens];
  };

  // dot[t] += vectors kV .. kEnd - 1 of the block times the activations, exactly. `pairs` carries
  // up to kPairSums sums of pairs in 16 bits.
  template <int kV, int kEnd>
  static inline __attribute__((always_inline)) void Dot(const State* s, const uint8_t* quants,
                                                        size_t column, __m256i* pairs,
                                                        __m256i* dot) {
    if constexpr (kV < kEnd) {
      const __m256i weights = LoadQuants<kType, kV>(quants);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t) {
        const __m256i x = _mm256_set1_epi32(LoadAs<int32_t>(s->x[t] + column + 4 * kV));
        const __m256i product = Pairs(weights, x);
        pairs[t] = kV % kPairSums<kType> == 0 ? product : _mm256_add_epi16(pairs[t], product);
        if constexpr (kV % kPairSums<kType> == kPairSums<kType> - 1 || kV + 1 == kEnd)
          dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1)));
      }
      Dot<kV + 1, kEnd>(s, quants, column, pairs, dot);
    }
  }

  static __m256i Pairs(__m256i weights, __m256i x) {
    if constexpr (kType == DType::kQ8_0)
      return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    else
      return _mm256_maddubs_epi16(weights, x);
  }

  // Vectors [kBegin, kEnd) of block b, scaled by `scale` of 8 rows. The zero point is subtracted as
  // its multiple of the activations' sum: sum[0] for the first 4 vectors, sum[1] for the others.
  template <int kBegin, int kEnd>
  static inline __attribute__((always_inline)) void Part(State* s, size_t b, __m256 scale) {
    const size_t act = s->act_scales + b * sizeof(Q8Scale);
    __m256i pairs[kTokens];
    __m256i dot[kTokens];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      pairs[t] = dot[t] = _mm256_setzero_si256();
    Dot<kBegin, kEnd>(s, s->quants + b * kQuantBytes<kType>, b * kBlock, pairs, dot);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      if constexpr (!kHasMinimum<kType> && kType != DType::kQ8_0) {
        const uint8_t* sums = s->x[t] + act + offsetof(Q8Scale, sum);
        int32_t sum = LoadAs<int32_t>(sums + kBegin);
        if constexpr (kEnd - kBegin == 8) sum += LoadAs<int32_t>(sums + 4);
        const __m256i zero = _mm256_slli_epi32(_mm256_set1_epi32(sum), kZeroShift<kType>);
        dot[t] = _mm256_sub_epi32(dot[t], zero);
      }
      const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(LoadAs<float>(s->x[t] + act)));
      s->sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), both, s->sum[t]);
    }
  }

  static inline __attribute__((always_inline)) void Block(State* s, size_t b) {
    if constexpr (kType == DType::kQ6_K) {
      const uint8_t* bytes = s->scales + b * 32 + s->row;
      const __m256 d = LoadFloats<DType::kF16>(s->supers + b / 8 * 32 + 2 * s->row);
      Part<0, 4>(s, b, ByteScale(bytes, d));
      Part<4, 8>(s, b, ByteScale(bytes + kGroup, d));
    } else if constexpr (kHasMinimum<kType>) {
      const uint8_t* bytes = s->scales + b * 32 + s->row;
      const uint8_t* super = s->supers + b / 8 * 64 + 2 * s->row;
      Part<0, 8>(s, b, UnsignedScale(bytes, LoadFloats<DType::kF16>(super)));
      const __m256 min = UnsignedScale(bytes + kGroup, LoadFloats<DType::kF16>(super + 32));
      const size_t act = s->act_scales + b * sizeof(Q8Scale) + offsetof(Q8Scale, sum_scale);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t)
        s->sum[t] = _mm256_fnmadd_ps(min, _mm256_set1_ps(LoadAs<float>(s->x[t] + act)), s->sum[t]);
    } else {
      Part<0, 8>(s, b, LoadFloats<DType::kF16>(s->scales + b * 32 + 2 * s->row));
    }
  }

  static __m256 UnsignedScale(const uint8_t* p, __m256 d) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
  }

  static __m256 ByteScale(const uint8_t* p, __m256 d) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
  }

  static void Run(const MatMulArgs& args, uint64_t group_bytes, uint32_t token, uint32_t out,
                  Columns columns) {
    const size_t blocks = args.w.cols / kBlock;
    const uint8_t* group = Bytes(args.w.data) + out / kGroup * group_bytes;
    State s;
    s.row = out % kGroup;
    s.quants = group + 4 * s.row;
    s.scales = group + blocks * kQuantBytes<kType>;
    s.supers = s.scales + blocks * 32;
    s.act_scales = (size_t{args.w.cols} + 63) / 64 * 64;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      s.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      s.sum[t] = _mm256_setzero_ps();
    }
    for (size_t b = columns.begin / kBlock; b < columns.end / kBlock; ++b)
      Block(&s, b);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      StoreOutputs(args, token + t, out, s.sum[t]);
  }
};

template <DType kType>
void QuantColumns(const MatMulArgs& args, Columns columns) {
  const uint64_t bytes = TiledGroupBytes(kType, args.w.cols);
  for (uint32_t out = args.out_begin; out < args.out_end; out += kLanes) {
    uint32_t t = 0;
    for (; args.num_tokens - t >= 4; t += 4)
      QuantTile<kType, 4>::Run(args, bytes, t, out, columns);
    for (; args.num_tokens - t >= 2; t += 2)
      QuantTile<kType, 2>::Run(args, bytes, t, out, columns);
    if (t < args.num_tokens) QuantTile<kType, 1>::Run(args, bytes, t, out, columns);
  }
}

template <DType kType>
void AllTokens(const MatMulArgs& args, Columns columns) {
  if constexpr (kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBf16) {
    FloatColumns<kType>(args, columns);
  } else {
    QuantColumns<kType>(args, columns);
  }
}

template <DType kType>
void MatMul(const MatMulArgs& args) {
#ifdef KVRM_BREAK_INVARIANCE
  // The negative control of the invariance suite: another order of summation in a batch.
  if (args.num_tokens > 1) {
    const uint32_t middle = args.w.cols / 2 / kBlock * kBlock;
    AllTokens<kType>(args, {0, middle});
    MatMulArgs rest = args;
    rest.bias = nullptr;
    rest.accumulate = true;
    AllTokens<kType>(rest, {middle, args.w.cols});
    return;
  }
#endif
  AllTokens<kType>(args, {0, args.w.cols});
}

uint64_t BytesQ8(uint32_t cols) {
  const uint64_t scales = cols / kBlock * sizeof(Q8Scale);
  return (uint64_t{cols} + 63) / 64 * 64 + (scales + 63) / 64 * 64;
}

// As in scalar.cc, operation by operation, so that the prepared bytes are the same.
Q8Scale QuantizeBlock(const float* x, int8_t* q) {
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
  float amax;
  __builtin_memcpy(&amax, &greatest, sizeof(amax));
  const bool usable = greatest < 0x7f800000u && amax >= 0x1p-100f;
  const __m256 inverse = _mm256_set1_ps(usable ? 127.0f / amax : 0.0f);
  const __m256i keep = _mm256_set1_epi32(usable ? -1 : 0);
  Q8Scale result;
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
    result.sum[half] = static_cast<int32_t>(SumOf(_mm256_cvtepi32_ps(_mm256_add_epi32(a, b))));
  }
  result.scale = usable ? amax / 127.0f : 0.0f;
  if (greatest >= 0x7f800000u) result.scale = __builtin_nanf("");
  result.sum_scale = result.scale * static_cast<float>(result.sum[0] + result.sum[1]);
  return result;
}

void PrepareQ8(const float* x, void* target, uint32_t cols) {
  auto* q = static_cast<int8_t*>(target);
  uint8_t* scales = static_cast<uint8_t*>(target) + (size_t{cols} + 63) / 64 * 64;
  for (size_t b = 0; b < cols / kBlock; ++b) {
    const Q8Scale scale = QuantizeBlock(x + b * kBlock, q + b * kBlock);
    __builtin_memcpy(scales + b * sizeof(scale), &scale, sizeof(scale));
  }
}

constexpr uint32_t kTiles = kUnitTiles;

// Per query head, in args.scratch: kAttentionUnit scores or weights, and after those of all heads
// the running maximum, sum and the correction of this unit.
struct Scratch {
  float* weights;
  float* maximum;
  float* sum;
  float* correction;
};

// All ones in the attended lanes of half a tile.
__m256i Attended(const AttentionUnit& unit, uint32_t vector) {
  const uint32_t first = vector % 2 * kLanes;
  const uint32_t begin = unit.begin[vector / 2];
  const uint32_t end = unit.end[vector / 2];
  const __m256i before_end = TailMask(end > first ? end - first : 0);
  const __m256i before_begin = TailMask(begin > first ? begin - first : 0);
  return _mm256_andnot_si256(before_begin, before_end);
}

// Scores in scratch become weights relative to the new maximum.
//
// HAZARD: lanes outside the attended range hold stale or uninitialised slots, NaN and Inf among
// them. They are replaced by selection, never by multiplication with zero.
void Weigh(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
           const Scratch& scratch) {
  float* weights = scratch.weights + size_t{head} * kAttentionUnit;
  __m256 greatest = _mm256_set1_ps(-kInfinity);
  for (uint32_t i = 0; i < 2 * kTiles; ++i) {
    const __m256 mask = _mm256_castsi256_ps(Attended(unit, i));
    const __m256 score =
        _mm256_mul_ps(_mm256_loadu_ps(weights + i * kLanes), _mm256_set1_ps(args.scale));
    const __m256 chosen = _mm256_blendv_ps(_mm256_set1_ps(-kInfinity), score, mask);
    _mm256_storeu_ps(weights + i * kLanes, chosen);
    greatest = _mm256_max_ps(greatest, chosen);
  }
  const float before = scratch.maximum[head];
  const float here = MaxOf(greatest);
  const float maximum = here > before ? here : before;
  __m256 sum = _mm256_setzero_ps();
  for (uint32_t i = 0; i < 2 * kTiles; ++i) {
    const __m256 score = _mm256_loadu_ps(weights + i * kLanes);
    const __m256 weight = _mm256_and_ps(_mm256_castsi256_ps(Attended(unit, i)),
                                        Exp(_mm256_sub_ps(score, _mm256_set1_ps(maximum))));
    _mm256_storeu_ps(weights + i * kLanes, weight);
    sum = _mm256_add_ps(sum, weight);
  }
  const float correction = _mm256_cvtss_f32(Exp(_mm256_set1_ps(before - maximum)));
  scratch.maximum[head] = maximum;
  scratch.correction[head] = correction;
  scratch.sum[head] = scratch.sum[head] * correction + SumOf(sum);
}

template <DType kType, uint32_t kHeads>
struct Heads {
  // Eight sums at a time: fewer heads take more tiles or more dimensions.
  static constexpr uint32_t kTilesAtOnce = 4 / kHeads;
  static constexpr uint32_t kVectorsAtOnce = 8 / kHeads;

  // Products of queries and keys of kTilesAtOnce tiles, into scratch.
  static void Score(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                    uint32_t tile, const Scratch& scratch) {
    const float* q = args.q + size_t{head} * args.head_dim;
    __m256 dot[kHeads][2 * kTilesAtOnce];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < 2 * kTilesAtOnce; ++i)
        dot[h][i] = _mm256_setzero_ps();
    }
    for (size_t d = 0; d < args.head_dim; ++d) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < 2 * kTilesAtOnce; ++i) {
        const __m256 keys = LoadFloats<kType>(unit.k[tile + i / 2] +
                                              (d * kGroup + i % 2 * kLanes) * kElementBytes<kType>);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h)
          dot[h][i] =
              _mm256_fmadd_ps(_mm256_set1_ps(q[h * size_t{args.head_dim} + d]), keys, dot[h][i]);
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      float* scores = scratch.weights + size_t{head + h} * kAttentionUnit + tile * kGroup;
      KVRM_UNROLL
      for (uint32_t i = 0; i < 2 * kTilesAtOnce; ++i)
        _mm256_storeu_ps(scores + i * kLanes, dot[h][i]);
    }
  }

  // Folds the unit's values into `dims` dimensions from `dim` of the outputs, position by position:
  // whole vectors, or one with a tail.
  template <uint32_t kVectors>
  static void Fold(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                   uint32_t dim, uint32_t dims, const Scratch& scratch) {
    const __m256i mask = TailMask(dims);
    float* out = args.out + size_t{head} * args.head_dim + dim;
    __m256 sum[kHeads][kVectors];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kVectors; ++c)
        sum[h][c] =
            _mm256_mul_ps(_mm256_maskload_ps(out + h * size_t{args.head_dim} + c * kLanes, mask),
                          _mm256_set1_ps(scratch.correction[head + h]));
    }
    for (uint32_t i = 0; i < kTiles; ++i) {
      const float* weights = scratch.weights + size_t{head} * kAttentionUnit + i * kGroup;
      for (size_t lane = unit.begin[i]; lane < unit.end[i]; ++lane) {
        const uint8_t* value = unit.v[i] + (lane * args.head_dim + dim) * kElementBytes<kType>;
        KVRM_UNROLL
        for (uint32_t c = 0; c < kVectors; ++c) {
          const __m256 values = dims < kLanes
                                    ? LoadSome<kType>(dims, value)
                                    : LoadFloats<kType>(value + c * kLanes * kElementBytes<kType>);
          KVRM_UNROLL
          for (uint32_t h = 0; h < kHeads; ++h)
            sum[h][c] = _mm256_fmadd_ps(_mm256_set1_ps(weights[h * kAttentionUnit + lane]), values,
                                        sum[h][c]);
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kVectors; ++c)
        _mm256_maskstore_ps(out + h * size_t{args.head_dim} + c * kLanes, mask, sum[h][c]);
    }
  }

  static void Attend(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                     const Scratch& scratch) {
    for (uint32_t tile = 0; tile < kTiles; tile += kTilesAtOnce)
      Score(args, unit, head, tile, scratch);
    for (uint32_t h = 0; h < kHeads; ++h)
      Weigh(args, unit, head + h, scratch);
    constexpr uint32_t kDims = kVectorsAtOnce * kLanes;
    uint32_t dim = 0;
    for (; args.head_dim - dim >= kDims; dim += kDims)
      Fold<kVectorsAtOnce>(args, unit, head, dim, kDims, scratch);
    for (; dim < args.head_dim; dim += kLanes)
      Fold<1>(args, unit, head, dim, args.head_dim - dim, scratch);
  }
};

template <DType kType>
void AttendType(const AttentionArgs& args) {
  Scratch scratch;
  scratch.weights = args.scratch;
  scratch.maximum = scratch.weights + size_t{args.group} * kAttentionUnit;
  scratch.sum = scratch.maximum + args.group;
  scratch.correction = scratch.sum + args.group;
  for (uint32_t g = 0; g < args.group; ++g) {
    scratch.maximum[g] = -kInfinity;
    scratch.sum[g] = 0;
  }
  __builtin_memset(args.out, 0, size_t{args.group} * args.head_dim * sizeof(float));
  UnitWalk walk = StartUnits(args);
  AttentionUnit unit;
  while (NextUnit(&walk, &unit)) {
    uint32_t g = 0;
    for (; args.group - g >= 4; g += 4)
      Heads<kType, 4>::Attend(args, unit, g, scratch);
    for (; args.group - g >= 2; g += 2)
      Heads<kType, 2>::Attend(args, unit, g, scratch);
    if (g < args.group) Heads<kType, 1>::Attend(args, unit, g, scratch);
  }
  for (uint32_t g = 0; g < args.group; ++g) {
    float* out = args.out + size_t{g} * args.head_dim;
    const __m256 inverse = _mm256_set1_ps(1.0f / scratch.sum[g]);
    for (uint32_t d = 0; d < args.head_dim; d += kLanes) {
      const __m256i mask = TailMask(args.head_dim - d);
      _mm256_maskstore_ps(out + d, mask, _mm256_mul_ps(_mm256_maskload_ps(out + d, mask), inverse));
    }
  }
}

void Attention(const AttentionArgs& args) {
  switch (args.dtype) {
    case DType::kF32:
      return AttendType<DType::kF32>(args);
    case DType::kF16:
      return AttendType<DType::kF16>(args);
    default:
      return AttendType<DType::kBf16>(args);
  }
}

void RmsNorm(const float* x, const float* w, float eps, float* y, uint32_t n) {
  __m256 squares = _mm256_setzero_ps();
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256 values = _mm256_maskload_ps(x + i, TailMask(n - i));
    squares = _mm256_fmadd_ps(values, values, squares);
  }
  const float mean = SumOf(squares) / static_cast<float>(n);
  const __m256 scale = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    const __m256 values = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(values, _mm256_maskload_ps(w + i, mask)));
  }
}

void SwiGlu(const float* gate, const float* up, float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    const __m256 g = _mm256_maskload_ps(gate + i, mask);
    const __m256 e = Exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, mask)));
  }
}

void ExpRow(const float* x, float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    _mm256_maskstore_ps(y + i, mask, Exp(_mm256_maskload_ps(x + i, mask)));
  }
}

template <DType kType, ActFormat kAct>
constexpr MatKernel kMat = {.act = kAct,
                            .packed_bytes = TiledBytes<kType>,
                            .pack = TiledPack<kType>,
                            .matmul = MatMul<kType>,
                            .row = TiledRow<kType>};

}  // namespace

const CpuKernels kAvx2Kernels = {
    .name = "avx2",
    .mat = {kMat<DType::kF32, ActFormat::kF32>, kMat<DType::kF16, ActFormat::kF32>,
            kMat<DType::kBf16, ActFormat::kF32>, kMat<DType::kQ8_0, ActFormat::kQ8>,
            kMat<DType::kQ4_0, ActFormat::kQ8>, kMat<DType::kQ5_0, ActFormat::kQ8>,
            kMat<DType::kQ4_K, ActFormat::kQ8>, kMat<DType::kQ5_K, ActFormat::kQ8>,
            kMat<DType::kQ6_K, ActFormat::kQ8>},
    .act = {{nullptr, nullptr}, {nullptr, nullptr}, {BytesQ8, PrepareQ8}},
    .rms_norm = RmsNorm,
    .rope = nullptr,
    .store_kv = nullptr,
    .attention = Attention,
    .swiglu = SwiGlu,
    .exp = ExpRow,
};

}  // namespace kvrm
