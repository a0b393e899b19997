// SPDX-License-Identifier: Apache-2.0
// Matrix products with AVX-512 (VNNI for quantised weights).
//
// Every output element is one lane with one chain of sums in the order of the columns, whatever the
// number of tokens or groups that share a pass over the weights: blocking never changes a bit.
#include "kernels/avx512_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

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
  // The compiler leaves it out where vectors are arguments, as they are here. Whoever runs SSE code
  // next would pay for it: a sampler takes 30 times as long.
  _mm256_zeroupper();
}
}  // namespace

void Avx512MatMul(const MatMulArgs& args) {
  switch (args.w.type) {
    case DType::kF32:
      return MatMul<DType::kF32>(args);
    case DType::kF16:
      return MatMul<DType::kF16>(args);
    case DType::kBf16:
      return MatMul<DType::kBf16>(args);
    case DType::kQ8_0:
      return MatMul<DType::kQ8_0>(args);
    case DType::kQ4_0:
      return MatMul<DType::kQ4_0>(args);
    case DType::kQ5_0:
      return MatMul<DType::kQ5_0>(args);
    case DType::kQ4_K:
      return MatMul<DType::kQ4_K>(args);
    case DType::kQ5_K:
      return MatMul<DType::kQ5_K>(args);
    default:
      return MatMul<DType::kQ6_K>(args);
  }
}

}  // namespace kvrm
