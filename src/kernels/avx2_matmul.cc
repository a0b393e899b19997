// SPDX-License-Identifier: Apache-2.0
// Matrix products with AVX2.
#include "kernels/avx2_lanes.h"
#include "kernels/avx_matmul.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// y of one token and 8 outputs.
void StoreOutputs(const MatMulArgs& args, uint32_t token, uint32_t out, __m256 sum) {
  if (out >= args.out_end) return;
  const __m256i mask = TailMask(args.out_end - out);
  float* y = args.y + token * args.y_stride + out;
  if (args.bias != nullptr) sum = _mm256_add_ps(sum, _mm256_maskload_ps(args.bias + out, mask));
  if (args.accumulate) sum = _mm256_add_ps(_mm256_maskload_ps(y, mask), sum);
  _mm256_maskstore_ps(y, mask, sum);
}

// 8 rows of a column. Of BF16 the two columns of a pair are the halves of the same lanes.
template <DType kType>
__m256 LoadColumn(const uint8_t* tile, size_t k, uint32_t row) {
  if constexpr (kType == DType::kBf16) {
    const __m256i pair = Load256(tile + (k / 2 * kOutTile + row) * 4);
    return _mm256_castsi256_ps(k % 2 == 0 ? _mm256_slli_epi32(pair, 16)
                                          : _mm256_and_si256(pair, _mm256_set1_epi32(-65536)));
  } else {
    return LoadFloats<kType>(tile + (k * kOutTile + row) * kElementBytes<kType>);
  }
}

// kTokens tokens by kVectors times 8 rows of a tile, from `out` on.
template <DType kType, uint32_t kTokens, uint32_t kVectors>
struct FloatTile {
  static constexpr size_t kColumnBytes = kOutTile * kElementBytes<kType>;
  static constexpr size_t kAhead = 4096;  // as in avx512_matmul.cc

  static void Run(const MatMulArgs& args, uint32_t token, uint32_t out, Columns columns) {
    const uint8_t* tile = Bytes(args.w.data) + out / kOutTile * OutTileBytes(kType, args.w.cols);
    const uint8_t* x[kTokens];
    __m256 sum[kTokens][kVectors];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      KVRM_UNROLL
      for (uint32_t g = 0; g < kVectors; ++g)
        sum[t][g] = _mm256_setzero_ps();
    }
    for (size_t k = columns.begin; k < columns.end; ++k) {
      KVRM_UNROLL
      for (size_t i = 0; i < kColumnBytes; i += 64)
        __builtin_prefetch(tile + k * kColumnBytes + kAhead + i);
      KVRM_UNROLL
      for (uint32_t g = 0; g < kVectors; ++g) {
        const __m256 weights = LoadColumn<kType>(tile, k, out % kOutTile + g * kLanes);
        KVRM_UNROLL
        for (uint32_t t = 0; t < kTokens; ++t)
          sum[t][g] = _mm256_fmadd_ps(
              weights, _mm256_set1_ps(LoadAs<float>(x[t] + k * sizeof(float))), sum[t][g]);
      }
    }
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < kVectors; ++g)
        StoreOutputs(args, token + t, out + g * kLanes, sum[t][g]);
    }
  }
};

// The whole tile for one or two tokens, half of it for four.
template <DType kType>
void FloatColumns(const MatMulArgs& args, Columns columns) {
  for (uint32_t out = args.out_begin; out < args.out_end; out += kOutTile) {
    uint32_t t = 0;
    for (; args.num_tokens - t >= 4; t += 4) {
      FloatTile<kType, 4, 2>::Run(args, t, out, columns);
      FloatTile<kType, 4, 2>::Run(args, t, out + kGroup, columns);
    }
    for (; args.num_tokens - t >= 2; t += 2)
      FloatTile<kType, 2, 4>::Run(args, t, out, columns);
    if (t < args.num_tokens) FloatTile<kType, 1, 4>::Run(args, t, out, columns);
  }
}

template <DType kType>
constexpr bool kHasMinimum = kType == DType::kQ4_K || kType == DType::kQ5_K;

template <DType kType>
constexpr uint32_t kQuantBytes = kType == DType::kQ8_0                            ? 512
                                 : kType == DType::kQ4_0 || kType == DType::kQ4_K ? 256
                                 : kType == DType::kQ6_K                          ? 384
                                                                                  : 320;

// What a sum starts from (Q8Scale); Q8_0's values are made signed first.
template <DType kType>
constexpr int kStart = kType == DType::kQ4_0   ? kStart8
                       : kType == DType::kQ5_0 ? kStart16
                       : kType == DType::kQ6_K ? kStart32
                                               : kStart0;

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

// Of the super of both groups.
template <DType kType>
constexpr uint32_t kSuperBytes = kHasMinimum<kType>      ? 128
                                 : kType == DType::kQ6_K ? 64
                                                         : 0;

template <DType kType, uint32_t kTokens>
struct QuantTile {
  static constexpr size_t kBlockBytes = 2 * kQuantBytes<kType> + 64;

  struct State {
    const uint8_t* tile;
    const uint8_t* x[kTokens];
    size_t act_scales;  // bytes from a row of activations to its Q8Scale[]
    uint32_t group;     // of the tile
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

  // Vectors [kBegin, kEnd) of block b, scaled by `scale` of 8 rows.
  template <int kBegin, int kEnd>
  static inline __attribute__((always_inline)) void Part(State* s, size_t b, __m256 scale) {
    const size_t act = s->act_scales + b * sizeof(Q8Scale);
    __m256i pairs[kTokens];
    __m256i dot[kTokens];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      pairs[t] = _mm256_setzero_si256();
      dot[t] = _mm256_set1_epi32(SumStart<kStart<kType>, kBegin / 4>(s->x[t] + act));
    }
    Dot<kBegin, kEnd>(s, BlockAt(s, b) + s->group * kQuantBytes<kType> + 4 * s->row, b * kBlock,
                      pairs, dot);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m256 act_scale = _mm256_set1_ps(LoadAs<float>(s->x[t] + act));
      if constexpr (kStart<kType> == kStart32) {
        s->sum[t] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_mul_ps(scale, act_scale), s->sum[t]);
      } else {
        const uint8_t* magic_scale = s->x[t] + act + offsetof(Q8Scale, magic_scale);
        const __m256 product = _mm256_fmsub_ps(_mm256_castsi256_ps(dot[t]), act_scale,
                                               _mm256_set1_ps(LoadAs<float>(magic_scale)));
        s->sum[t] = _mm256_fmadd_ps(product, scale, s->sum[t]);
      }
    }
  }

  static const uint8_t* BlockAt(const State* s, size_t b) {
    return s->tile + b * kBlockBytes + (b / 8 + 1) * kSuperBytes<kType>;
  }
  static const uint8_t* SuperAt(const State* s, size_t b) {
    return s->tile +
           b / 8 * (8 * kBlockBytes + kSuperBytes<kType>)+s->group * kSuperBytes<kType> / 2 +
           2 * s->row;
  }

  static inline __attribute__((always_inline)) void Block(State* s, size_t b) {
    const uint8_t* scales = BlockAt(s, b) + 2 * kQuantBytes<kType> + 32 * s->group;
    if constexpr (kType == DType::kQ6_K) {
      const __m256 d = LoadFloats<DType::kF16>(SuperAt(s, b));
      Part<0, 4>(s, b, ByteScale(scales + s->row, d));
      Part<4, 8>(s, b, ByteScale(scales + kGroup + s->row, d));
    } else if constexpr (kHasMinimum<kType>) {
      const uint8_t* super = SuperAt(s, b);
      Part<0, 8>(s, b, UnsignedScale(scales + s->row, LoadFloats<DType::kF16>(super)));
      const __m256 min =
          UnsignedScale(scales + kGroup + s->row, LoadFloats<DType::kF16>(super + 32));
      const size_t act = s->act_scales + b * sizeof(Q8Scale) + offsetof(Q8Scale, sum_scale);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t)
        s->sum[t] = _mm256_fnmadd_ps(min, _mm256_set1_ps(LoadAs<float>(s->x[t] + act)), s->sum[t]);
    } else {
      Part<0, 8>(s, b, LoadFloats<DType::kF16>(scales + 2 * s->row));
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

  static void Run(const MatMulArgs& args, uint32_t token, uint32_t out, Columns columns) {
    State s;
    s.tile = Bytes(args.w.data) + out / kOutTile * OutTileBytes(kType, args.w.cols);
    s.group = out % kOutTile / kGroup;
    s.row = out % kGroup;
    s.act_scales = (size_t{args.w.cols} + 63) / 64 * 64;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      s.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      s.sum[t] = _mm256_setzero_ps();
    }
    // The four passes that take a tile 8 rows at a time fetch a quarter of the next tile each.
    const size_t tile_bytes = OutTileBytes(kType, args.w.cols);
    const size_t quarter = token == 0 ? out % kOutTile / kLanes : 4;
    for (size_t b = columns.begin / kBlock; b < columns.end / kBlock; ++b) {
      if (b % 4 == quarter) {
        KVRM_UNROLL
        for (size_t i = 0; i < kBlockBytes; i += 64)
          __builtin_prefetch(BlockAt(&s, b) + tile_bytes + i);
      }
      Block(&s, b);
    }
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      StoreOutputs(args, token + t, out, s.sum[t]);
  }
};

template <DType kType>
void QuantColumns(const MatMulArgs& args, Columns columns) {
  for (uint32_t out = args.out_begin; out < args.out_end; out += kLanes) {
    uint32_t t = 0;
    for (; args.num_tokens - t >= 4; t += 4)
      QuantTile<kType, 4>::Run(args, t, out, columns);
    for (; args.num_tokens - t >= 2; t += 2)
      QuantTile<kType, 2>::Run(args, t, out, columns);
    if (t < args.num_tokens) QuantTile<kType, 1>::Run(args, t, out, columns);
  }
}

struct AllTokens {
  template <DType kType>
  static void Run(const MatMulArgs& args, Columns columns) {
    if constexpr (kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBf16) {
      FloatColumns<kType>(args, columns);
    } else {
      QuantColumns<kType>(args, columns);
    }
  }
};

}  // namespace

void Avx2MatMul(const MatMulArgs& args) {
  MatMulOfType<AllTokens>(args);
}

}  // namespace kvrm
