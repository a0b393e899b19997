// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels. Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma
// -mf16c, this file only.
//
// HAZARD: include nothing here that can emit an inline function or a template: no STL, nothing from
// base/. The linker keeps one copy of each such function, and may keep the AVX-512 one for the
// whole program, which then dies with SIGILL on a machine without it (docs/decisions/0008).
// Everything but the table has internal linkage.
//
// Every output element is one lane with one chain of sums in the order of the columns, whatever the
// number of tokens or groups that share a pass over the weights: blocking never changes a bit.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own header trips it (GCC bug 105593).
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

#define KVRM_UNROLL _Pragma("GCC unroll 16")

constexpr uint32_t kLanes = 16;
constexpr uint32_t kBlock = 32;
constexpr float kInfinity = __builtin_inff();

__mmask16 TailMask(uint32_t n) {
  return n >= kLanes ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
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

// e^x = 2^n e^r with |r| <= ln 2 / 2: the Taylor polynomial of degree 7 is off by less than
// r^8 / 8! = 5.2e-9, and ln 2 is split so that x - n ln 2 is exact to the last bits. Below -104 the
// result is 0, above 89 Inf; NaN passes (the second operand of min and max wins).
__m512 Exp(__m512 x) {
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

// y of one token and one group of 16 outputs.
void StoreOutputs(const MatMulArgs& args, uint32_t token, uint32_t out, __m512 sum) {
  const __mmask16 mask = TailMask(args.out_end - out);
  float* y = args.y + token * args.y_stride + out;
  if (args.bias != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, args.bias + out));
  if (args.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
  _mm512_mask_storeu_ps(y, mask, sum);
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
    __m512 sum[kTokens][kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      w[g] = Bytes(args.w.data) + (out / kLanes + g) * group_bytes;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_setzero_ps();
    }
    for (size_t k = columns.begin; k < columns.end; ++k) {
      __m512 weights[kGroups];
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        weights[g] = LoadFloats<kType>(w[g] + k * kLanes * kElementBytes<kType>);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t) {
        const __m512 value = _mm512_set1_ps(LoadAs<float>(x[t] + k * sizeof(float)));
        KVRM_UNROLL
        for (uint32_t g = 0; g < kGroups; ++g)
          sum[t][g] = _mm512_fmadd_ps(weights[g], value, sum[t][g]);
      }
    }
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        StoreOutputs(args, token + t, out + g * kLanes, sum[t][g]);
    }
  }
};

// As many times kTokens tokens as there are from `t` on; returns the first that is left. Eight
// tokens of four groups would not fit the registers.
template <DType kType, uint32_t kTokens>
uint32_t FloatTokens(const MatMulArgs& args, uint32_t t, uint32_t out, uint32_t groups,
                     Columns columns) {
  constexpr uint32_t kGroups = kTokens == 8 ? 2 : 4;
  const uint64_t bytes = TiledGroupBytes(kType, args.w.cols);
  for (; args.num_tokens - t >= kTokens; t += kTokens) {
    if (groups == 1) FloatTile<kType, kTokens, 1>::Run(args, bytes, t, out, columns);
    for (uint32_t g = 0; g + kGroups <= groups; g += kGroups)
      FloatTile<kType, kTokens, kGroups>::Run(args, bytes, t, out + g * kLanes, columns);
  }
  return t;
}

// Four groups at a time where there are four: a single token needs that many chains to hide the
// latency of the multiply-add.
template <DType kType>
void FloatColumns(const MatMulArgs& args, Columns columns) {
  for (uint32_t out = args.out_begin; out < args.out_end;) {
    const uint32_t groups = args.out_end - out > 3 * kLanes ? 4 : 1;
    uint32_t t = FloatTokens<kType, 8>(args, 0, out, groups, columns);
    t = FloatTokens<kType, 4>(args, t, out, groups, columns);
    t = FloatTokens<kType, 2>(args, t, out, groups, columns);
    FloatTokens<kType, 1>(args, t, out, groups, columns);
    out += groups * kLanes;
  }
}

template <DType kType>
constexpr bool kHasMinimum = kType == DType::kQ4_K || kType == DType::kQ5_K;

template <DType kType>
constexpr uint32_t kQuantBytes = kType == DType::kQ8_0                            ? 512
                                 : kType == DType::kQ4_0 || kType == DType::kQ4_K ? 256
                                 : kType == DType::kQ6_K                          ? 384
                                                                                  : 320;

// Log2 of the zero point (QuantZero in quant_block.h), for the types without a minimum.
template <DType kType>
constexpr int kZeroShift = kType == DType::kQ8_0   ? 7
                           : kType == DType::kQ4_0 ? 3
                           : kType == DType::kQ5_0 ? 4
                                                   : 5;

// Moves bit kFrom of every byte to bit kTo; other bits are garbage for the caller to mask.
template <int kFrom, int kTo>
__m512i MoveBit(__m512i x) {
  if constexpr (kFrom < kTo) return _mm512_slli_epi16(x, kTo - kFrom);
  if constexpr (kFrom > kTo) return _mm512_srli_epi16(x, kFrom - kTo);
  return x;
}

// Vector kV of a block: 4 columns of 16 rows, unsigned bytes.
template <DType kType, int kV>
__m512i LoadQuants(const uint8_t* quants) {
  if constexpr (kType == DType::kQ8_0) return _mm512_loadu_si512(quants + 64 * kV);
  const __m512i packed = _mm512_loadu_si512(quants + 64 * (kV % 4));
  constexpr int kNibble = kV < 4 ? 0 : 4;
  const __m512i low = _mm512_and_si512(MoveBit<kNibble, 0>(packed), _mm512_set1_epi8(15));
  // 0xf8: a | (b & c).
  if constexpr (kQuantBytes<kType> == 320) {
    const __m512i high = MoveBit<kV, 4>(_mm512_loadu_si512(quants + 256));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(16), 0xf8);
  }
  if constexpr (kQuantBytes<kType> == 384) {
    const __m512i high = MoveBit<2 * (kV % 4), 4>(_mm512_loadu_si512(quants + 256 + 64 * (kV / 4)));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(48), 0xf8);
  }
  return low;
}

template <DType kType, uint32_t kTokens>
struct QuantTile {
  // What one group and kTokens tokens need on the way through the blocks.
  struct State {
    const uint8_t* quants;
    const uint8_t* scales;
    const uint8_t* supers;
    const uint8_t* x[kTokens];
    size_t act_scales;  // bytes from a row of activations to its Q8Scale[]
    __m512 sum[kTokens];
  };

  // dot[t] += vectors kV .. kEnd - 1 of the block times the activations, exactly.
  template <int kV, int kEnd>
  static inline __attribute__((always_inline)) void Dot(const State* s, const uint8_t* quants,
                                                        size_t column, __m512i* dot) {
    if constexpr (kV < kEnd) {
      const __m512i weights = LoadQuants<kType, kV>(quants);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t)
        dot[t] = _mm512_dpbusd_epi32(dot[t], weights,
                                     _mm512_set1_epi32(LoadAs<int32_t>(s->x[t] + column + 4 * kV)));
      Dot<kV + 1, kEnd>(s, quants, column, dot);
    }
  }

  // Vectors [kBegin, kEnd) of block b, scaled by `scale` of 16 rows.
  template <int kBegin, int kEnd>
  static inline __attribute__((always_inline)) void Part(State* s, size_t b, __m512 scale) {
    const size_t act = s->act_scales + b * sizeof(Q8Scale);
    __m512i dot[kTokens];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      dot[t] = _mm512_setzero_si512();
    Dot<kBegin, kEnd>(s, s->quants + b * kQuantBytes<kType>, b * kBlock, dot);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      // The weights in the product are too large by the zero point, the product by its multiple of
      // the activations' sum: sum[0] for the first 4 vectors, sum[1] for the others.
      if constexpr (!kHasMinimum<kType>) {
        const uint8_t* sums = s->x[t] + act + offsetof(Q8Scale, sum);
        int32_t sum = LoadAs<int32_t>(sums + kBegin);
        if constexpr (kEnd - kBegin == 8) sum += LoadAs<int32_t>(sums + 4);
        const __m512i excess = _mm512_slli_epi32(_mm512_set1_epi32(sum), kZeroShift<kType>);
        dot[t] = _mm512_sub_epi32(dot[t], excess);
      }
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(LoadAs<float>(s->x[t] + act)));
      s->sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), both, s->sum[t]);
    }
  }

  static inline __attribute__((always_inline)) void Block(State* s, size_t b) {
    const uint8_t* scales = s->scales + b * 32;
    if constexpr (kType == DType::kQ6_K) {
      const __m512 d = LoadFloats<DType::kF16>(s->supers + b / 8 * 32);
      Part<0, 4>(s, b, ByteScale(scales, d));
      Part<4, 8>(s, b, ByteScale(scales + 16, d));
    } else if constexpr (kHasMinimum<kType>) {
      const uint8_t* super = s->supers + b / 8 * 64;
      Part<0, 8>(s, b, UnsignedScale(scales, LoadFloats<DType::kF16>(super)));
      const __m512 min = UnsignedScale(scales + 16, LoadFloats<DType::kF16>(super + 32));
      const size_t act = s->act_scales + b * sizeof(Q8Scale) + offsetof(Q8Scale, sum_scale);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t)
        s->sum[t] = _mm512_fnmadd_ps(min, _mm512_set1_ps(LoadAs<float>(s->x[t] + act)), s->sum[t]);
    } else {
      Part<0, 8>(s, b, LoadFloats<DType::kF16>(scales));
    }
  }

  static __m512 UnsignedScale(const uint8_t* p, __m512 d) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
  }

  static __m512 ByteScale(const uint8_t* p, __m512 d) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }

  static void Run(const MatMulArgs& args, uint64_t group_bytes, uint32_t token, uint32_t out,
                  Columns columns) {
    const size_t blocks = args.w.cols / kBlock;
    State s;
    s.quants = Bytes(args.w.data) + out / kLanes * group_bytes;
    s.scales = s.quants + blocks * kQuantBytes<kType>;
    s.supers = s.scales + blocks * 32;
    s.act_scales = (size_t{args.w.cols} + 63) / 64 * 64;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      s.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      s.sum[t] = _mm512_setzero_ps();
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
    for (; args.num_tokens - t >= 8; t += 8)
      QuantTile<kType, 8>::Run(args, bytes, t, out, columns);
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
  const __m512 x0 = _mm512_loadu_ps(x);
  const __m512 x1 = _mm512_loadu_ps(x + kLanes);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const uint32_t greatest = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
  float amax;
  __builtin_memcpy(&amax, &greatest, sizeof(amax));
  const bool usable = greatest < 0x7f800000u && amax >= 0x1p-100f;
  const __mmask16 mask = TailMask(usable ? kLanes : 0);
  const __m512 inverse = _mm512_set1_ps(usable ? 127.0f / amax : 0.0f);
  const __m512i q0 = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x0, inverse));
  const __m512i q1 = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x1, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(q0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + kLanes), _mm512_cvtepi32_epi8(q1));
  Q8Scale result;
  result.scale = usable ? amax / 127.0f : 0.0f;
  if (greatest >= 0x7f800000u) result.scale = __builtin_nanf("");
  result.sum[0] = _mm512_reduce_add_epi32(q0);
  result.sum[1] = _mm512_reduce_add_epi32(q1);
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

// Per query head, in args.scratch: kAttentionUnit weights, and after those of all heads the running
// maximum, sum and the correction of this unit.
struct Scratch {
  float* weights;
  float* maximum;
  float* sum;
  float* correction;
};

template <DType kType, uint32_t kHeads>
struct Heads {
  // Scores of one unit, the new maximum, and the weights relative to it.
  static void Score(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                    const Scratch& scratch) {
    const float* q = args.q + size_t{head} * args.head_dim;
    __m512 dot[kHeads][kTiles];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        dot[h][i] = _mm512_setzero_ps();
    }
    for (size_t d = 0; d < args.head_dim; ++d) {
      __m512 keys[kTiles];
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        keys[i] = LoadFloats<kType>(unit.k[i] + d * kLanes * kElementBytes<kType>);
      KVRM_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h) {
        const __m512 value = _mm512_set1_ps(q[h * size_t{args.head_dim} + d]);
        KVRM_UNROLL
        for (uint32_t i = 0; i < kTiles; ++i)
          dot[h][i] = _mm512_fmadd_ps(value, keys[i], dot[h][i]);
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h)
      Weigh(args, unit, head + h, dot[h], scratch);
  }

  // HAZARD: lanes outside the attended range hold stale or uninitialised slots, NaN and Inf among
  // them. They are replaced by selection, never by multiplication with zero.
  static void Weigh(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                    const __m512* dot, const Scratch& scratch) {
    const __m512 lowest = _mm512_set1_ps(-kInfinity);
    __m512 scores[kTiles];
    __mmask16 mask[kTiles];
    for (uint32_t i = 0; i < kTiles; ++i) {
      mask[i] = static_cast<__mmask16>(TailMask(unit.end[i]) & ~TailMask(unit.begin[i]));
      scores[i] = _mm512_mask_mul_ps(lowest, mask[i], dot[i], _mm512_set1_ps(args.scale));
    }
    const __m512 greatest =
        _mm512_max_ps(_mm512_max_ps(scores[0], scores[1]), _mm512_max_ps(scores[2], scores[3]));
    const float before = scratch.maximum[head];
    const float here = _mm512_reduce_max_ps(greatest);
    const float maximum = here > before ? here : before;
    __m512 weights[kTiles];
    for (uint32_t i = 0; i < kTiles; ++i) {
      weights[i] =
          _mm512_maskz_mov_ps(mask[i], Exp(_mm512_sub_ps(scores[i], _mm512_set1_ps(maximum))));
      _mm512_storeu_ps(scratch.weights + size_t{head} * kAttentionUnit + i * kLanes, weights[i]);
    }
    const float sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(weights[0], weights[1]),
                                                         _mm512_add_ps(weights[2], weights[3])));
    const float correction = _mm512_cvtss_f32(Exp(_mm512_set1_ps(before - maximum)));
    scratch.maximum[head] = maximum;
    scratch.correction[head] = correction;
    scratch.sum[head] = scratch.sum[head] * correction + sum;
  }

  // Folds the unit's values into dimensions [dim, dim + 16 kVectors) of the outputs, position by
  // position; into those of `mask` of each vector, to be exact.
  template <uint32_t kVectors>
  static void Fold(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                   uint32_t dim, __mmask16 mask, const Scratch& scratch) {
    float* out = args.out + size_t{head} * args.head_dim + dim;
    __m512 sum[kHeads][kVectors];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kVectors; ++c)
        sum[h][c] =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out + h * size_t{args.head_dim} + c * kLanes),
                          _mm512_set1_ps(scratch.correction[head + h]));
    }
    for (uint32_t i = 0; i < kTiles; ++i) {
      const float* weights = scratch.weights + size_t{head} * kAttentionUnit + i * kLanes;
      for (size_t lane = unit.begin[i]; lane < unit.end[i]; ++lane) {
        const uint8_t* value = unit.v[i] + (lane * args.head_dim + dim) * kElementBytes<kType>;
        __m512 values[kVectors];
        KVRM_UNROLL
        for (uint32_t c = 0; c < kVectors; ++c)
          values[c] = LoadSome<kType>(mask, value + c * kLanes * kElementBytes<kType>);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          const __m512 weight = _mm512_set1_ps(weights[h * kAttentionUnit + lane]);
          KVRM_UNROLL
          for (uint32_t c = 0; c < kVectors; ++c)
            sum[h][c] = _mm512_fmadd_ps(weight, values[c], sum[h][c]);
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kVectors; ++c)
        _mm512_mask_storeu_ps(out + h * size_t{args.head_dim} + c * kLanes, mask, sum[h][c]);
    }
  }

  static void Attend(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                     const Scratch& scratch) {
    Score(args, unit, head, scratch);
    uint32_t dim = 0;
    for (; args.head_dim - dim >= 4 * kLanes; dim += 4 * kLanes)
      Fold<4>(args, unit, head, dim, TailMask(kLanes), scratch);
    for (; dim < args.head_dim; dim += kLanes)
      Fold<1>(args, unit, head, dim, TailMask(args.head_dim - dim), scratch);
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
    const __m512 inverse = _mm512_set1_ps(1.0f / scratch.sum[g]);
    for (uint32_t d = 0; d < args.head_dim; d += kLanes) {
      const __mmask16 mask = TailMask(args.head_dim - d);
      _mm512_mask_storeu_ps(out + d, mask,
                            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out + d), inverse));
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

// K is a column of its tile, V a row.
template <DType kType>
void StoreKvType(const StoreKvArgs& args) {
  constexpr size_t kBytes = kElementBytes<kType>;
  for (uint32_t h = 0; h < args.num_kv_heads; ++h) {
    const float* k = args.k + size_t{h} * args.head_dim;
    const float* v = args.v + size_t{h} * args.head_dim;
    uint8_t* k_target = args.k_tile + h * args.head_bytes + args.lane * kBytes;
    uint8_t* v_target = args.v_tile + h * args.head_bytes + args.lane * args.head_dim * kBytes;
    for (size_t d = 0; d < args.head_dim; d += kLanes) {
      const uint32_t left = args.head_dim - static_cast<uint32_t>(d);
      const __mmask16 mask = TailMask(left);
      const __m512 keys = _mm512_maskz_loadu_ps(mask, k + d);
      const __m512 values = _mm512_maskz_loadu_ps(mask, v + d);
      alignas(64) uint8_t column[kLanes * 4];
      if constexpr (kType == DType::kF32) {
        _mm512_store_ps(column, keys);
        _mm512_mask_storeu_ps(v_target + d * kBytes, mask, values);
      } else {
        _mm256_store_si256(reinterpret_cast<__m256i*>(column), NarrowFloats<kType>(keys));
        _mm256_mask_storeu_epi16(v_target + d * kBytes, mask, NarrowFloats<kType>(values));
      }
      const uint32_t lanes = left < kLanes ? left : kLanes;
      for (size_t i = 0; i < lanes; ++i)
        __builtin_memcpy(k_target + (d + i) * kLanes * kBytes, column + i * kBytes, kBytes);
    }
  }
}

void StoreKv(const StoreKvArgs& args) {
  switch (args.dtype) {
    case DType::kF32:
      return StoreKvType<DType::kF32>(args);
    case DType::kF16:
      return StoreKvType<DType::kF16>(args);
    default:
      return StoreKvType<DType::kBf16>(args);
  }
}

void RmsNorm(const float* x, const float* w, float eps, float* y, uint32_t n) {
  __m512 squares = _mm512_setzero_ps();
  for (size_t i = 0; i < n; i += kLanes) {
    const __m512 values = _mm512_maskz_loadu_ps(TailMask(n - static_cast<uint32_t>(i)), x + i);
    squares = _mm512_fmadd_ps(values, values, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(n);
  const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = TailMask(n - static_cast<uint32_t>(i));
    const __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(values, _mm512_maskz_loadu_ps(mask, w + i)));
  }
}

void RopeHalves(const RopeArgs& args, float* x) {
  const uint32_t half = args.rope_dim / 2;
  for (uint32_t i = 0; i < half; i += kLanes) {
    const __mmask16 mask = TailMask(half - i);
    const __m512 cosine = _mm512_maskz_loadu_ps(mask, args.cosine + i);
    const __m512 sine = _mm512_maskz_loadu_ps(mask, args.sine + i);
    const __m512 x0 = _mm512_maskz_loadu_ps(mask, x + i);
    const __m512 x1 = _mm512_maskz_loadu_ps(mask, x + half + i);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(x0, cosine, _mm512_mul_ps(x1, sine)));
    _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(x0, sine, _mm512_mul_ps(x1, cosine)));
  }
}

// Eight pairs a step: each lane multiplies itself by its pair's cosine, and its neighbour by the
// sine, subtracted in the even lanes and added in the odd.
void RopeInterleaved(const RopeArgs& args, float* x) {
  const uint32_t half = args.rope_dim / 2;
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  for (uint32_t i = 0; i < half; i += 8) {
    const __mmask8 pairs = static_cast<__mmask8>(TailMask(half - i));
    const __mmask16 mask = TailMask(2 * (half - i));
    const __m512 cosine = _mm512_permutexvar_ps(
        twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(pairs, args.cosine + i)));
    const __m512 sine = _mm512_permutexvar_ps(
        twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(pairs, args.sine + i)));
    const __m512 own = _mm512_maskz_loadu_ps(mask, x + 2 * i);
    const __m512 neighbour = _mm512_permute_ps(own, 0xb1);
    _mm512_mask_storeu_ps(x + 2 * i, mask,
                          _mm512_fmaddsub_ps(own, cosine, _mm512_mul_ps(neighbour, sine)));
  }
}

void Rope(const RopeArgs& args) {
  for (uint32_t h = 0; h < args.num_heads; ++h) {
    float* x = args.x + size_t{h} * args.head_dim;
    args.style == RopeStyle::kHalves ? RopeHalves(args, x) : RopeInterleaved(args, x);
  }
}

void SwiGlu(const float* gate, const float* up, float* y, uint32_t n) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (size_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = TailMask(n - static_cast<uint32_t>(i));
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 e = Exp(_mm512_sub_ps(_mm512_setzero_ps(), g));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
    _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

void ExpRow(const float* x, float* y, uint32_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = TailMask(n - static_cast<uint32_t>(i));
    _mm512_mask_storeu_ps(y + i, mask, Exp(_mm512_maskz_loadu_ps(mask, x + i)));
  }
}

template <DType kType, ActFormat kAct>
constexpr MatKernel kMat = {.act = kAct,
                            .packed_bytes = TiledBytes<kType>,
                            .pack = TiledPack<kType>,
                            .matmul = MatMul<kType>,
                            .row = TiledRow<kType>};

}  // namespace

const CpuKernels kAvx512Kernels = {
    .name = "avx512",
    .mat = {kMat<DType::kF32, ActFormat::kF32>, kMat<DType::kF16, ActFormat::kF32>,
            kMat<DType::kBf16, ActFormat::kF32>, kMat<DType::kQ8_0, ActFormat::kQ8>,
            kMat<DType::kQ4_0, ActFormat::kQ8>, kMat<DType::kQ5_0, ActFormat::kQ8>,
            kMat<DType::kQ4_K, ActFormat::kQ8>, kMat<DType::kQ5_K, ActFormat::kQ8>,
            kMat<DType::kQ6_K, ActFormat::kQ8>},
    .act = {{nullptr, nullptr}, {nullptr, nullptr}, {BytesQ8, PrepareQ8}},
    .rms_norm = RmsNorm,
    .rope = Rope,
    .store_kv = StoreKv,
    .attention = Attention,
    .swiglu = SwiGlu,
    .exp = ExpRow,
};

}  // namespace kvrm
