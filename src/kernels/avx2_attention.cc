// SPDX-License-Identifier: Apache-2.0
// Attention with AVX2: all query heads of a KV head share one pass over its K and V, up to six at a
// time. The structure is that of avx512_attention.cc.
#include "kernels/avx2_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

constexpr uint32_t kScaleBytes = 2 * kGroup;  // Q8_0: the scales of one block of 32, in a tile
constexpr uint32_t kFoldTiles = 8;            // between two loads of the sums
constexpr uint32_t kMostHeads = 6;

// A line that is wanted soon, and one of kTilesAhead tiles behind it, which comes from memory.
inline void Prefetch(const uint8_t* soon, const uint8_t* ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(soon), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
}

// The queries of one unit: floats as they are, or as the dot products of bytes want them.
struct Queries {
  const float* q;
  const uint8_t* bytes;  // Q8_0, [group] times: head_dim bytes, then the scale of each block
  size_t stride;
};

// All ones in the attended lanes of half a tile.
__m256i Attended(const AttentionUnit& unit, uint32_t vector) {
  const uint32_t first = vector % 2 * kLanes;
  const uint32_t begin = vector / 2 == 0 ? unit.first_lane : 0;
  const uint32_t end = vector / 2 + 1 == unit.num_tiles ? unit.end_lane : kGroup;
  const __m256i before_end = TailMask(end > first ? end - first : 0);
  const __m256i before_begin = TailMask(begin > first ? begin - first : 0);
  return _mm256_andnot_si256(before_begin, before_end);
}

// Scores become weights relative to the greatest.
//
// HAZARD: lanes outside the attended range hold stale or uninitialised slots, NaN and Inf among
// them. They are replaced by selection, never by multiplication with zero.
void Weigh(const AttentionArgs& args, const AttentionUnit& unit, float* weights, float* maximum,
           float* sum) {
  const __m256 scale = _mm256_set1_ps(args.scale);
  __m256 greatest = _mm256_set1_ps(-kInfinity);
  for (uint32_t i = 0; i < 2 * unit.num_tiles; ++i) {
    const __m256 mask = _mm256_castsi256_ps(Attended(unit, i));
    const __m256 score = _mm256_mul_ps(_mm256_loadu_ps(weights + i * kLanes), scale);
    const __m256 chosen = _mm256_blendv_ps(_mm256_set1_ps(-kInfinity), score, mask);
    _mm256_storeu_ps(weights + i * kLanes, chosen);
    greatest = _mm256_max_ps(greatest, chosen);
  }
  *maximum = MaxOf(greatest);
  const __m256 top = _mm256_set1_ps(*maximum);
  __m256 total = _mm256_setzero_ps();
  for (uint32_t i = 0; i < 2 * unit.num_tiles; ++i) {
    const __m256 score = _mm256_loadu_ps(weights + i * kLanes);
    const __m256 weight =
        _mm256_and_ps(_mm256_castsi256_ps(Attended(unit, i)), Exp(_mm256_sub_ps(score, top)));
    _mm256_storeu_ps(weights + i * kLanes, weight);
    total = _mm256_add_ps(total, weight);
  }
  *sum = SumOf(total);
}

template <DType kType, uint32_t kHeads>
struct Heads {
  // At most twelve sums at a time, of sixteen registers.
  static constexpr uint32_t kTiles = kHeads == 1 ? 4 : kHeads <= 3 ? 2 : 1;  // in Score
  static constexpr uint32_t kVectors = 2 * kTiles;                           // also in Fold

  // Products of queries and keys of kTiles tiles, from the first of `keys`.
  static void ScoreFloats(const AttentionArgs& args, const Queries& queries, uint32_t head,
                          const uint8_t* const* keys, const uint8_t* const* ahead, float* scores) {
    const float* q = queries.q + size_t{head} * args.head_dim;
    __m256 dot[kHeads][kVectors];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kVectors; ++i)
        dot[h][i] = _mm256_setzero_ps();
    }
    for (size_t d = 0; d < args.head_dim; ++d) {
      const size_t row = d * kGroup * kElementBytes<kType>;
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        if (d * kElementBytes<kType> % 4 == 0) Prefetch(keys[i + kTiles] + row, ahead[i] + row);
      KVRM_UNROLL
      for (uint32_t i = 0; i < kVectors; ++i) {
        const __m256 k =
            LoadFloats<kType>(keys[i / 2] + row + i % 2 * kLanes * kElementBytes<kType>);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h)
          dot[h][i] =
              _mm256_fmadd_ps(_mm256_set1_ps(q[h * size_t{args.head_dim} + d]), k, dot[h][i]);
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kVectors; ++i)
        _mm256_storeu_ps(scores + h * kAttentionUnit + i * kLanes, dot[h][i]);
    }
  }

  // The same of bytes: exact within a block of 32 dimensions, whose sum of floats is in `scores`.
  // Products are of |q| and k with the sign of q, so that two of them fit 16 bits.
  static void ScoreBytes(const AttentionArgs& args, const Queries& queries, uint32_t head,
                         const uint8_t* const* keys, const uint8_t* const* ahead, float* scores) {
    const uint8_t* q = queries.bytes + head * queries.stride;
    for (size_t b = 0; b < args.head_dim / kBlock; ++b) {
      __m256i dot[kHeads][kVectors];
      KVRM_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h) {
        KVRM_UNROLL
        for (uint32_t i = 0; i < kVectors; ++i)
          dot[h][i] = _mm256_setzero_si256();
      }
      for (size_t d = b * kBlock; d < (b + 1) * kBlock; d += 4) {
        KVRM_UNROLL
        for (uint32_t i = 0; i < kVectors; ++i) {
          if (i % 2 == 0) Prefetch(keys[i / 2 + kTiles] + d * kGroup, ahead[i / 2] + d * kGroup);
          const __m256i k = _mm256_xor_si256(Load256(keys[i / 2] + d * kGroup + i % 2 * 32),
                                             _mm256_set1_epi8(-128));
          KVRM_UNROLL
          for (uint32_t h = 0; h < kHeads; ++h) {
            const __m256i four = _mm256_set1_epi32(LoadAs<int32_t>(q + h * queries.stride + d));
            const __m256i pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(four), _mm256_sign_epi8(k, four));
            dot[h][i] = _mm256_add_epi32(dot[h][i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
          }
        }
      }
      KVRM_UNROLL
      for (uint32_t i = 0; i < kVectors; ++i) {
        const size_t at = size_t{args.head_dim} * kGroup + b * kScaleBytes;
        if (i % 2 == 0) Prefetch(keys[i / 2 + kTiles] + at, ahead[i / 2] + at);
        const __m256 scale = LoadFloats<DType::kBf16>(keys[i / 2] + at + i % 2 * kGroup);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          float* score = scores + h * kAttentionUnit + i * kLanes;
          const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[h][i]), scale);
          const __m256 before = b == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(score);
          const auto of_query = LoadAs<float>(q + h * queries.stride + args.head_dim + b * 4);
          _mm256_storeu_ps(score, _mm256_fmadd_ps(product, _mm256_set1_ps(of_query), before));
        }
      }
    }
  }

  static void Score(const AttentionArgs& args, const AttentionUnit& unit, const Queries& queries,
                    uint32_t head, float* scores) {
    for (uint32_t i = 0; i < unit.num_tiles; i += kTiles) {
      if constexpr (kType == DType::kQ8_0) {
        ScoreBytes(args, queries, head, unit.k + i, unit.ahead + i, scores + i * kGroup);
      } else {
        ScoreFloats(args, queries, head, unit.k + i, unit.ahead + i, scores + i * kGroup);
      }
    }
  }

  // Folds tiles [tile, end) into `dims` dimensions from `dim` of the sums, position by position:
  // whole vectors, or one with a tail.
  template <uint32_t kCount>
  static void Fold(const AttentionArgs& args, const AttentionUnit& unit, uint32_t tile,
                   uint32_t end, uint32_t dim, const float* weights, float* sums) {
    const uint32_t dims = args.head_dim - dim;
    const __m256i mask = TailMask(dims);
    float* out = sums + dim;
    __m256 sum[kHeads][kCount];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        sum[h][c] = _mm256_maskload_ps(out + h * size_t{args.head_dim} + c * kLanes, mask);
    }
    for (; tile < end; ++tile) {
      const float* w = weights + size_t{tile} * kGroup;
      const uint32_t last = tile + 1 == unit.num_tiles ? unit.end_lane : kGroup;
      for (size_t lane = tile == 0 ? unit.first_lane : 0; lane < last; ++lane) {
        const size_t at = (lane * args.head_dim + dim) * kElementBytes<kType>;
        constexpr size_t kLine = 64;
        KVRM_UNROLL
        for (size_t line = 0; line < kCount * kLanes * kElementBytes<kType>; line += kLine)
          Prefetch(unit.v[tile + 1] + at + line, unit.ahead[unit.num_tiles + tile] + at + line);
        KVRM_UNROLL
        for (uint32_t c = 0; c < kCount; ++c) {
          const uint8_t* value = unit.v[tile] + at + c * kLanes * kElementBytes<kType>;
          const __m256 values = kCount == 1 && dims < kLanes ? LoadSome<kType>(dims, value)
                                                             : LoadFloats<kType>(value);
          KVRM_UNROLL
          for (uint32_t h = 0; h < kHeads; ++h) {
            const __m256 weight = _mm256_set1_ps(w[h * kAttentionUnit + lane]);
            sum[h][c] = _mm256_fmadd_ps(weight, values, sum[h][c]);
          }
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        _mm256_maskstore_ps(out + h * size_t{args.head_dim} + c * kLanes, mask, sum[h][c]);
    }
  }

  // The same of bytes, whose dimensions [dim, dim + 8 kCount) lie in one block: four tokens to a
  // load, of which one byte after the other becomes the upper byte of its 32 bits.
  template <uint32_t kCount>
  static void FoldBytes(const AttentionArgs& args, const AttentionUnit& unit, uint32_t tile,
                        uint32_t end, uint32_t dim, const float* weights, float* sums) {
    float* out = sums + dim;
    __m256 sum[kHeads][kCount];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        sum[h][c] = _mm256_loadu_ps(out + h * size_t{args.head_dim} + c * kLanes);
    }
    for (; tile < end; ++tile) {
      alignas(32) float scaled[kHeads * kGroup];
      ScaleWeights(args, unit.v[tile], dim, weights + size_t{tile} * kGroup, scaled);
      const uint32_t last = tile + 1 == unit.num_tiles ? unit.end_lane : kGroup;
      for (uint32_t lane = tile == 0 ? unit.first_lane : 0; lane < last; ++lane) {
        const size_t at = (lane / 4 * size_t{args.head_dim} + dim) * 4;
        const __m256i pick =
            _mm256_or_si256(_mm256_set1_epi32(static_cast<int>(lane % 4 << 24)),
                            _mm256_setr_epi32(0x00808080, 0x04808080, 0x08808080, 0x0c808080,
                                              0x00808080, 0x04808080, 0x08808080, 0x0c808080));
        if (lane % 2 == 0)
          Prefetch(unit.v[tile + 1] + at + lane % 4 * 32,
                   unit.ahead[unit.num_tiles + tile] + at + lane % 4 * 32);
        KVRM_UNROLL
        for (uint32_t c = 0; c < kCount; ++c) {
          const __m256i bytes = Load256(unit.v[tile] + at + c * 32);
          const __m256 values = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, pick));
          KVRM_UNROLL
          for (uint32_t h = 0; h < kHeads; ++h)
            sum[h][c] =
                _mm256_fmadd_ps(_mm256_set1_ps(scaled[h * kGroup + lane]), values, sum[h][c]);
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        _mm256_storeu_ps(out + h * size_t{args.head_dim} + c * kLanes, sum[h][c]);
    }
  }

  // Weights times the scales of the values of one block, and 2^-24 for bytes that are upper ones:
  // [kHeads][16 lanes].
  static void ScaleWeights(const AttentionArgs& args, const uint8_t* tile, uint32_t dim,
                           const float* weights, float* scaled) {
    KVRM_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      const __m256 stored = LoadFloats<DType::kBf16>(tile + size_t{args.head_dim} * kGroup +
                                                     dim / kBlock * kScaleBytes + i * kGroup);
      const __m256 d = _mm256_mul_ps(stored, _mm256_set1_ps(0x1p-24f));
      KVRM_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h)
        _mm256_store_ps(
            scaled + h * kGroup + i * kLanes,
            _mm256_mul_ps(_mm256_loadu_ps(weights + h * kAttentionUnit + i * kLanes), d));
    }
  }

  static void Attend(const AttentionArgs& args, const AttentionUnit& unit, const Queries& queries,
                     uint32_t head, float* weights, float* partial) {
    weights += size_t{head} * kAttentionUnit;
    Score(args, unit, queries, head, weights);
    float* maximum = partial + size_t{args.group} * args.head_dim + head;
    for (uint32_t h = 0; h < kHeads; ++h)
      Weigh(args, unit, weights + size_t{h} * kAttentionUnit, maximum + h,
            maximum + h + args.group);
    float* sums = partial + size_t{head} * args.head_dim;
    __builtin_memset(sums, 0, kHeads * sizeof(float) * args.head_dim);
    constexpr uint32_t kDims = kVectors * kLanes;
    for (uint32_t tile = 0; tile < unit.num_tiles; tile += kFoldTiles) {
      const uint32_t end = tile + kFoldTiles < unit.num_tiles ? tile + kFoldTiles : unit.num_tiles;
      uint32_t dim = 0;
      if constexpr (kType == DType::kQ8_0) {
        constexpr uint32_t kCount = kVectors < 4 ? kVectors : 4;
        for (; dim < args.head_dim; dim += kCount * kLanes)
          FoldBytes<kCount>(args, unit, tile, end, dim, weights, sums);
      } else {
        for (; args.head_dim - dim >= kDims; dim += kDims)
          Fold<kVectors>(args, unit, tile, end, dim, weights, sums);
        for (; dim < args.head_dim; dim += kLanes)
          Fold<1>(args, unit, tile, end, dim, weights, sums);
      }
    }
  }
};

// Quantises the queries behind the weights: head_dim bytes and 4 for every 32 of them, which
// head_dim floats have room for.
Queries Prepare(const AttentionArgs& args, float* weights) {
  const size_t stride = size_t{args.head_dim} * sizeof(float);
  auto* bytes = reinterpret_cast<uint8_t*>(weights + size_t{args.group} * kAttentionUnit);
  if (args.dtype == DType::kQ8_0) {
    for (uint32_t g = 0; g < args.group; ++g) {
      uint8_t* target = bytes + g * stride;
      for (size_t b = 0; b < args.head_dim / kBlock; ++b) {
        const Q8Scale block = QuantizeBlock(args.q + size_t{g} * args.head_dim + b * kBlock,
                                            reinterpret_cast<int8_t*>(target + b * kBlock));
        __builtin_memcpy(target + args.head_dim + b * 4, &block.scale, sizeof(block.scale));
      }
    }
  }
  return {args.q, bytes, stride};
}

template <DType kType>
void AttendType(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
  float* weights = AttentionKernelScratch(args);
  const Queries queries = Prepare(args, weights);
  // As few passes as can be, of equal widths.
  uint32_t passes = (args.group + kMostHeads - 1) / kMostHeads;
  for (uint32_t g = 0; g < args.group; --passes) {
    const uint32_t heads = (args.group - g + passes - 1) / passes;
    switch (heads) {
      case 6:
        Heads<kType, 6>::Attend(args, unit, queries, g, weights, partial);
        break;
      case 5:
        Heads<kType, 5>::Attend(args, unit, queries, g, weights, partial);
        break;
      case 4:
        Heads<kType, 4>::Attend(args, unit, queries, g, weights, partial);
        break;
      case 3:
        Heads<kType, 3>::Attend(args, unit, queries, g, weights, partial);
        break;
      case 2:
        Heads<kType, 2>::Attend(args, unit, queries, g, weights, partial);
        break;
      default:
        Heads<kType, 1>::Attend(args, unit, queries, g, weights, partial);
        break;
    }
    g += heads;
  }
}
}  // namespace

void Avx2AttentionUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
  switch (args.dtype) {
    case DType::kF32:
      return AttendType<DType::kF32>(args, unit, partial);
    case DType::kF16:
      return AttendType<DType::kF16>(args, unit, partial);
    case DType::kQ8_0:
      return AttendType<DType::kQ8_0>(args, unit, partial);
    default:
      return AttendType<DType::kBf16>(args, unit, partial);
  }
}

}  // namespace kvrm
