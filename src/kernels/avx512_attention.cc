// SPDX-License-Identifier: Apache-2.0
// Attention with AVX-512: all query heads of a KV head share one pass over its K and V, up to eight
// at a time: of one token, or those of several that follow each other. What was tried and what it
// brought: docs/decisions/0019.
#include "kernels/avx512_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

constexpr uint32_t kScaleBytes = 2 * kLanes;  // Q8_0: the scales of one block of 32, in a tile
constexpr uint32_t kFoldTiles = 8;            // between two loads of the sums
constexpr uint32_t kWeighTiles = 4;           // between two times that memory is asked

// A line that is wanted soon, and one of kTilesAhead tiles behind it, which comes from memory.
inline void Prefetch(const uint8_t* soon, const uint8_t* ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(soon), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
}

// Of all tokens.
uint32_t NumHeads(const AttentionArgs& args) {
  return args.group * args.num_tokens;
}

// Lanes of a unit: tile * kLanes + lane within the tile.
struct Span {
  uint32_t begin;
  uint32_t end;
};

uint32_t NumTiles(const Span& span) {
  return (span.end + kLanes - 1) / kLanes;
}

// What token `token` of args.num_tokens attends of the unit.
Span AttendedBy(const AttentionArgs& args, const AttentionUnit& unit, uint32_t token) {
  const uint32_t end = (unit.num_tiles - 1) * kLanes + unit.end_lane;
  return {unit.first_lane, unit.is_last ? end - (args.num_tokens - 1 - token) : end};
}

// Asks for the tiles between K and V a few lines at a time, so that memory is never idle.
class Between {
 public:
  Between(const AttentionArgs& args, const AttentionUnit& unit)
      : unit_(unit),
        tile_lines_(static_cast<uint32_t>(TileBytes(args) / 64)),
        // In as many equal parts as there are calls of Ask.
        lines_((kTilesBetween * tile_lines_ + NumHeads(args) * unit.num_tiles - 1) /
               (NumHeads(args) * unit.num_tiles)) {}

  // For `tiles` of the calls' tiles.
  void Ask(uint32_t tiles) {
    for (uint32_t left = tiles * lines_; left != 0 && tile_ < kTilesBetween;) {
      const uint32_t rest = tile_lines_ - line_;
      const uint32_t count = left < rest ? left : rest;
      const uint8_t* at = unit_.between[tile_] + size_t{line_} * 64;
      for (uint32_t i = 0; i < count; ++i, at += 64)
        _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
      left -= count;
      line_ += count;
      if (line_ < tile_lines_) continue;
      line_ = 0;
      ++tile_;
    }
  }

 private:
  static size_t TileBytes(const AttentionArgs& args) {
    const size_t elements = size_t{args.head_dim} * kLanes;
    if (args.dtype == DType::kQ8_0) return (elements + elements / 16 + 63) / 64 * 64;
    return elements * (args.dtype == DType::kF32 ? 4 : 2);
  }

  const AttentionUnit& unit_;
  const uint32_t tile_lines_;
  const uint32_t lines_;
  uint32_t tile_ = 0;
  uint32_t line_ = 0;
};

// The queries of one unit: floats as they are, or as the dot products of bytes want them.
struct Queries {
  const float* q;
  // Q8_0, [group] times: head_dim bytes, then a Q8Query of each block.
  const uint8_t* bytes;
  size_t stride;
};

// Of Q8Scale.
struct Q8Query {
  float scale;
  float magic_scale;
  int32_t start128;
};

// The lanes of a tile that are attended.
__mmask16 Attended(const Span& span, uint32_t tile) {
  const uint32_t first = tile * kLanes;
  const __mmask16 end = TailMask(span.end > first ? span.end - first : 0);
  return tile == 0 ? static_cast<__mmask16>(end & ~TailMask(span.begin)) : end;
}

// Q8_0: what the scales of the unit's values in one block are times 65,535 over the greatest of
// them, zero in lanes that are not attended. Returns the greatest over 65,535; NaN if one is NaN.
// `at` is where a tile has its scales of the block.
float RelativeScales(const AttentionUnit& unit, const Span& span, size_t at, float* scales) {
  __m512 greatest = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (uint32_t tile = 0; tile < unit.num_tiles; ++tile) {
    const __m512 scale =
        _mm512_maskz_mov_ps(Attended(span, tile), LoadFloats<DType::kBf16>(unit.v[tile] + at));
    nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(scale, scale, _CMP_UNORD_Q));
    greatest = _mm512_max_ps(greatest, scale);
    _mm512_store_ps(scales + tile * size_t{kLanes}, scale);
  }
  const float most = _mm512_reduce_max_ps(greatest);
  const __m512 factor = _mm512_set1_ps(most > 0 ? 65535.0f / most : 0.0f);
  for (uint32_t tile = 0; tile < (unit.num_tiles + 3) / 4 * 4; ++tile) {
    const __m512 scale = tile < unit.num_tiles ? _mm512_load_ps(scales + tile * size_t{kLanes})
                                               : _mm512_setzero_ps();
    _mm512_store_ps(scales + tile * size_t{kLanes}, _mm512_mul_ps(scale, factor));
  }
  return nan != 0 ? __builtin_nanf("") : most / 65535.0f;
}

// Of the scores times `scale`, where the span is.
//
// HAZARD: lanes outside the attended range hold stale or uninitialised slots, NaN and Inf among
// them. Here and below they are replaced by selection, never by multiplication with zero. Only the
// first and the last tile have any.
float GreatestScore(float scale, const Span& span, const float* scores) {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 lowest = _mm512_set1_ps(-kInfinity);
  const uint32_t last = NumTiles(span) - 1;
  const auto chosen = [&](uint32_t tile) {
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + tile * size_t{kLanes}), factor);
    return _mm512_mask_mov_ps(lowest, Attended(span, tile), score);
  };
  __m512 greatest = _mm512_max_ps(lowest, chosen(0));
  for (uint32_t i = 1; i < last; ++i)
    greatest = _mm512_max_ps(greatest,
                             _mm512_mul_ps(_mm512_loadu_ps(scores + i * size_t{kLanes}), factor));
  return _mm512_reduce_max_ps(last == 0 ? greatest : _mm512_max_ps(greatest, chosen(last)));
}

// Scores become their weights, zero outside the span; returns the sum. A tile at a time is summed,
// in their order, whoever the neighbours are.
float WeighScores(float scale, float greatest, const Span& span, float* scores, Between* between) {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 top = _mm512_set1_ps(greatest);
  const uint32_t last = NumTiles(span) - 1;
  __m512 total = _mm512_setzero_ps();
  const auto take = [&](uint32_t tile, __mmask16 mask) {
    float* at = scores + tile * size_t{kLanes};
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(at), factor);
    const __m512 weight = _mm512_maskz_mov_ps(mask, Exp(_mm512_sub_ps(score, top)));
    _mm512_storeu_ps(at, weight);
    total = _mm512_add_ps(total, weight);
  };
  take(0, Attended(span, 0));
  between->Ask(1);
  uint32_t i = 1;
  for (; i + kWeighTiles <= last; i += kWeighTiles) {
    between->Ask(kWeighTiles);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kWeighTiles; ++t)
      take(i + t, 0xffff);
  }
  between->Ask(last + 1 - i);
  for (; i <= last; ++i)
    take(i, Attended(span, i));
  return _mm512_reduce_add_ps(total);
}

template <DType kType, uint32_t kHeads>
struct Heads {
  static constexpr uint32_t kTiles = kHeads > 6 ? 2 : 4;    // at once, in Score
  static constexpr uint32_t kVectors = kHeads > 6 ? 2 : 4;  // at once, in Fold

  // Products of queries and keys of kTiles tiles, from the first of `keys`.
  static void ScoreFloats(const AttentionArgs& args, const Queries& queries, uint32_t head,
                          const uint8_t* const* keys, const uint8_t* const* ahead, float* scores) {
    constexpr uint32_t kStep = 4 / kElementBytes<kType>;  // dimensions of one cache line
    const float* q = queries.q + size_t{head} * args.head_dim;
    __m512 dot[kHeads][kTiles];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        dot[h][i] = _mm512_setzero_ps();
    }
    size_t line = 0;
    for (size_t d = 0; d < args.head_dim; d += kStep, line += 64) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        Prefetch(keys[i + kTiles] + line, ahead[i] + line);
      KVRM_UNROLL
      for (uint32_t s = 0; s < kStep; ++s) {
        __m512 k[kTiles];
        KVRM_UNROLL
        for (uint32_t i = 0; i < kTiles; ++i)
          k[i] = LoadFloats<kType>(keys[i] + line + s * kLanes * kElementBytes<kType>);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          const __m512 value = _mm512_set1_ps(q[h * size_t{args.head_dim} + d + s]);
          KVRM_UNROLL
          for (uint32_t i = 0; i < kTiles; ++i)
            dot[h][i] = _mm512_fmadd_ps(value, k[i], dot[h][i]);
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i)
        _mm512_storeu_ps(scores + h * kAttentionUnit + i * kLanes, dot[h][i]);
    }
  }

  // The same of bytes: exact within a block of 32 dimensions, whose sum of floats is in `scores`.
  static void ScoreBytes(const AttentionArgs& args, const Queries& queries, uint32_t head,
                         const uint8_t* const* keys, const uint8_t* const* ahead, float* scores) {
    const uint8_t* q = queries.bytes + head * queries.stride;
    for (size_t b = 0; b < args.head_dim / kBlock; ++b) {
      __m512i dot[kHeads][kTiles];
      Q8Query query[kHeads];
      KVRM_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h) {
        query[h] = LoadAs<Q8Query>(q + h * queries.stride + args.head_dim + b * sizeof(Q8Query));
        KVRM_UNROLL
        for (uint32_t i = 0; i < kTiles; ++i)
          dot[h][i] = _mm512_set1_epi32(query[h].start128);
      }
      for (size_t d = b * kBlock; d < (b + 1) * kBlock; d += 4) {
        __m512i k[kTiles];
        KVRM_UNROLL
        for (uint32_t i = 0; i < kTiles; ++i) {
          Prefetch(keys[i + kTiles] + d * kLanes, ahead[i] + d * kLanes);
          k[i] = _mm512_loadu_si512(keys[i] + d * kLanes);
        }
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          const __m512i four = _mm512_set1_epi32(LoadAs<int32_t>(q + h * queries.stride + d));
          KVRM_UNROLL
          for (uint32_t i = 0; i < kTiles; ++i)
            dot[h][i] = _mm512_dpbusd_epi32(dot[h][i], k[i], four);
        }
      }
      KVRM_UNROLL
      for (uint32_t i = 0; i < kTiles; ++i) {
        const size_t at = size_t{args.head_dim} * kLanes + b * kScaleBytes;
        Prefetch(keys[i + kTiles] + at, ahead[i] + at);
        const __m512 d = LoadFloats<DType::kBf16>(keys[i] + at);
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          float* score = scores + h * kAttentionUnit + i * kLanes;
          const __m512 product =
              _mm512_fmsub_ps(_mm512_castsi512_ps(dot[h][i]), _mm512_set1_ps(query[h].scale),
                              _mm512_set1_ps(query[h].magic_scale));
          const __m512 before = b == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(score);
          _mm512_storeu_ps(score, _mm512_fmadd_ps(product, d, before));
        }
      }
    }
  }

  static void Score(const AttentionArgs& args, const AttentionUnit& unit, const Queries& queries,
                    uint32_t head, float* scores) {
    for (uint32_t i = 0; i < unit.num_tiles; i += kTiles) {
      if constexpr (kType == DType::kQ8_0) {
        ScoreBytes(args, queries, head, unit.k + i, unit.ahead + i, scores + i * kLanes);
      } else {
        ScoreFloats(args, queries, head, unit.k + i, unit.ahead + i, scores + i * kLanes);
      }
    }
  }

  // Folds the span into dimensions [dim, dim + 16 kCount) of the sums, position by position; into
  // those of `mask`, to be exact, which is whole unless kCount is 1.
  template <uint32_t kCount>
  static void Fold(const AttentionArgs& args, const AttentionUnit& unit, const Span& span,
                   uint32_t dim, const float* weights, float* sums) {
    constexpr bool kWhole = kCount > 1;
    const __mmask16 mask = TailMask(args.head_dim - dim);
    float* out = sums + dim;
    __m512 sum[kHeads][kCount];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c) {
        const float* from = out + h * size_t{args.head_dim} + c * kLanes;
        sum[h][c] = kWhole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask, from);
      }
    }
    size_t lane = span.begin % kLanes;
    for (uint32_t tile = span.begin / kLanes; tile < NumTiles(span); ++tile, lane = 0) {
      const float* w = weights + size_t{tile} * kLanes;
      const uint32_t left = span.end - tile * kLanes;
      for (const uint32_t last = left < kLanes ? left : kLanes; lane < last; ++lane) {
        const size_t at = (lane * args.head_dim + dim) * kElementBytes<kType>;
        constexpr size_t kLine = 64;
        KVRM_UNROLL
        for (size_t line = 0; line < kCount * kLanes * kElementBytes<kType>; line += kLine)
          Prefetch(unit.v[tile + 1] + at + line, unit.ahead[unit.num_tiles + tile] + at + line);
        __m512 values[kCount];
        KVRM_UNROLL
        for (uint32_t c = 0; c < kCount; ++c) {
          const uint8_t* value = unit.v[tile] + at + c * kLanes * kElementBytes<kType>;
          values[c] = kWhole ? LoadFloats<kType>(value) : LoadSome<kType>(mask, value);
        }
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          KVRM_UNROLL
          for (uint32_t c = 0; c < kCount; ++c) {
            const __m512 weight = _mm512_set1_ps(w[h * kAttentionUnit + lane]);
            sum[h][c] = _mm512_fmadd_ps(weight, values[c], sum[h][c]);
          }
        }
      }
    }
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        _mm512_mask_storeu_ps(out + h * size_t{args.head_dim} + c * kLanes, mask, sum[h][c]);
    }
  }

  // Weights times the scales of the values of one block, as 16 bits without a sign: 65,535 stands
  // for `one`. First the upper bytes, then the lower ones; four tiles are a vector, in which four
  // consecutive tokens of tile t are the 32 bits number 4 (token / 4) + t.
  struct ByteWeights {
    alignas(64) uint8_t high[kHeads][kAttentionUnit];
    alignas(64) uint8_t low[kHeads][kAttentionUnit];
  };

  // For the heads of `heads`.
  static void PackWeights(const AttentionUnit& unit, const Span& heads, const float* weights,
                          const float* scales, ByteWeights* packed) {
    const __m512i low = _mm512_set1_epi16(0xff);
    for (uint32_t tile = 0; tile < unit.num_tiles; tile += 4) {
      for (uint32_t h = heads.begin; h < heads.end; ++h) {
        const float* from = weights + h * kAttentionUnit + tile * kLanes;
        __m512i w[4];
        KVRM_UNROLL
        for (uint32_t t = 0; t < 4; ++t)
          w[t] = _mm512_cvtps_epi32(
              _mm512_mul_ps(_mm512_loadu_ps(from + t * kLanes),
                            _mm512_load_ps(scales + (tile + t) * size_t{kLanes})));
        const __m512i w01 = _mm512_packus_epi32(w[0], w[1]);
        const __m512i w23 = _mm512_packus_epi32(w[2], w[3]);
        _mm512_store_si512(
            packed->high[h] + tile * kLanes,
            _mm512_packus_epi16(_mm512_srli_epi16(w01, 8), _mm512_srli_epi16(w23, 8)));
        _mm512_store_si512(
            packed->low[h] + tile * kLanes,
            _mm512_packus_epi16(_mm512_and_si512(w01, low), _mm512_and_si512(w23, low)));
      }
    }
  }

  // Folds the values of the unit into dimensions [dim, dim + 16 kCount), which lie in one block,
  // exactly. Lanes that are not attended have a weight of zero, and any byte times that is zero.
  template <uint32_t kCount>
  static void FoldBytes(const AttentionArgs& args, const AttentionUnit& unit, uint32_t dim,
                        const ByteWeights& packed, const float* steps, float* sums) {
    __m512i high[kHeads][kCount];
    __m512i low[kHeads][kCount];
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c)
        high[h][c] = low[h][c] = _mm512_setzero_si512();
    }
    for (uint32_t tile = 0; tile < unit.num_tiles; ++tile) {
      const size_t four_tiles = tile / 4 * size_t{64} + tile % 4 * size_t{4};
      for (size_t quad = 0; quad < 4; ++quad) {
        const size_t at = (quad * args.head_dim + dim) * 4;
        __m512i values[kCount];
        KVRM_UNROLL
        for (uint32_t c = 0; c < kCount; ++c) {
          Prefetch(unit.v[tile + 1] + at + c * 64, unit.ahead[unit.num_tiles + tile] + at + c * 64);
          values[c] = _mm512_loadu_si512(unit.v[tile] + at + c * 64);
        }
        KVRM_UNROLL
        for (uint32_t h = 0; h < kHeads; ++h) {
          const size_t number = four_tiles + quad * 16;
          const __m512i upper = _mm512_set1_epi32(LoadAs<int32_t>(packed.high[h] + number));
          const __m512i lower = _mm512_set1_epi32(LoadAs<int32_t>(packed.low[h] + number));
          KVRM_UNROLL
          for (uint32_t c = 0; c < kCount; ++c) {
            high[h][c] = _mm512_dpbusd_epi32(high[h][c], upper, values[c]);
            low[h][c] = _mm512_dpbusd_epi32(low[h][c], lower, values[c]);
          }
        }
      }
    }
    // Sums of a unit are below 512 * 255 * 127 < 2^24, which floats hold exactly.
    KVRM_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVRM_UNROLL
      for (uint32_t c = 0; c < kCount; ++c) {
        const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[h][c]), _mm512_set1_ps(256.0f),
                                           _mm512_cvtepi32_ps(low[h][c]));
        _mm512_storeu_ps(sums + h * size_t{args.head_dim} + dim + c * kLanes,
                         _mm512_mul_ps(sum, _mm512_set1_ps(steps[h])));
      }
    }
  }

  static void FoldUnitBytes(const AttentionArgs& args, const AttentionUnit& unit,
                            const float* weights, float* sums) {
    alignas(64) float scales[kAttentionUnit];
    ByteWeights packed;
    float steps[kHeads];
    // Of one token. Of several there are no more heads than kHeads.
    const uint32_t group = args.num_tokens == 1 ? kHeads : args.group;
    for (uint32_t dim = 0; dim < args.head_dim; dim += kBlock) {
      const size_t at = size_t{args.head_dim} * kLanes + dim / kBlock * kScaleBytes;
      float step = 0;
      for (uint32_t t = 0; t * group < kHeads; ++t) {
        // The greatest scale is that of what the token attends.
        if (t == 0 || unit.is_last)
          step = RelativeScales(unit, AttendedBy(args, unit, t), at, scales);
        PackWeights(unit, {t * group, (t + 1) * group}, weights, scales, &packed);
        for (uint32_t h = t * group; h < (t + 1) * group; ++h)
          steps[h] = step;
      }
      if constexpr (kHeads > 6) {
        FoldBytes<1>(args, unit, dim, packed, steps, sums);
        FoldBytes<1>(args, unit, dim + kLanes, packed, steps, sums);
      } else {
        FoldBytes<2>(args, unit, dim, packed, steps, sums);
      }
    }
  }

  static void FoldSpan(const AttentionArgs& args, const AttentionUnit& unit, const Span& span,
                       const float* weights, float* sums) {
    uint32_t dim = 0;
    for (; args.head_dim - dim >= kVectors * kLanes; dim += kVectors * kLanes)
      Fold<kVectors>(args, unit, span, dim, weights, sums);
    for (; dim < args.head_dim; dim += kLanes)
      Fold<1>(args, unit, span, dim, weights, sums);
  }

  // What all tokens attend by all heads at once, then what the later ones attend beyond. A weight
  // of zero would not do for the earlier: it leaves no NaN and not every sum as it is.
  static void FoldUnitFloats(const AttentionArgs& args, const AttentionUnit& unit,
                             const float* weights, float* sums) {
    __builtin_memset(sums, 0, kHeads * sizeof(float) * args.head_dim);
    const Span shared = AttendedBy(args, unit, 0);
    for (Span span = shared; span.begin < shared.end; span.begin = span.end) {
      const uint32_t end = (span.begin / kLanes + kFoldTiles) * kLanes;
      span.end = end < shared.end ? end : shared.end;
      FoldSpan(args, unit, span, weights, sums);
    }
    if (args.num_tokens == 1 || !unit.is_last) return;
    for (uint32_t h = args.group; h < kHeads; ++h) {
      const Span rest = {shared.end, AttendedBy(args, unit, h / args.group).end};
      Heads<kType, 1>::FoldSpan(args, unit, rest, weights + size_t{h} * kAttentionUnit,
                                sums + size_t{h} * args.head_dim);
    }
  }

  static void Attend(const AttentionArgs& args, const AttentionUnit& unit, const Queries& queries,
                     uint32_t head, Between* between, float* partial) {
    float* weights = AttentionKernelScratch(args);
    weights += size_t{head} * kAttentionUnit;
    Score(args, unit, queries, head, weights);
    float* maximum = partial + size_t{NumHeads(args)} * args.head_dim + head;
    Weigh(args, unit, head, weights, between, maximum);
    float* sums = partial + size_t{head} * args.head_dim;
    if constexpr (kType == DType::kQ8_0) {
      FoldUnitBytes(args, unit, weights, sums);
    } else {
      FoldUnitFloats(args, unit, weights, sums);
    }
  }

  // Scores become weights relative to the greatest; that and their sum are written. First the
  // greatest of all heads, then their weights: what a head must wait for is computed by then.
  static void Weigh(const AttentionArgs& args, const AttentionUnit& unit, uint32_t head,
                    float* weights, Between* between, float* maximum) {
    for (uint32_t h = 0; h < kHeads; ++h)
      maximum[h] = GreatestScore(args.scale, AttendedBy(args, unit, (head + h) / args.group),
                                 weights + size_t{h} * kAttentionUnit);
    for (uint32_t h = 0; h < kHeads; ++h)
      maximum[NumHeads(args) + h] =
          WeighScores(args.scale, maximum[h], AttendedBy(args, unit, (head + h) / args.group),
                      weights + size_t{h} * kAttentionUnit, between);
  }
};

// Quantises the queries behind the weights: head_dim bytes and a Q8Query for every 32 of them,
// which head_dim floats have room for. Those of several tokens are brought together there.
Queries Prepare(const AttentionArgs& args, float* weights) {
  const size_t stride = size_t{args.head_dim} * sizeof(float);
  float* copies = weights + size_t{NumHeads(args)} * kAttentionUnit;
  auto* bytes = reinterpret_cast<uint8_t*>(copies);
  const size_t token_bytes = args.group * stride;
  if (args.dtype != DType::kQ8_0) {
    if (args.num_tokens == 1) return {args.q, bytes, stride};
    for (uint32_t t = 0; t < args.num_tokens; ++t)
      __builtin_memcpy(bytes + t * token_bytes, args.q + t * args.q_stride, token_bytes);
    return {copies, bytes, stride};
  }
  for (uint32_t h = 0; h < NumHeads(args); ++h) {
    uint8_t* target = bytes + h * stride;
    const float* q =
        args.q + h / args.group * args.q_stride + size_t{h % args.group} * args.head_dim;
    for (size_t b = 0; b < args.head_dim / kBlock; ++b) {
      const Q8Scale block =
          QuantizeBlock(q + b * kBlock, reinterpret_cast<int8_t*>(target + b * kBlock));
      const Q8Query query = {block.scale, block.magic_scale, block.start[kStart128]};
      __builtin_memcpy(target + args.head_dim + b * sizeof(query), &query, sizeof(query));
    }
  }
  return {args.q, bytes, stride};
}

template <DType kType>
void AttendType(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
  const Queries queries = Prepare(args, AttentionKernelScratch(args));
  Between between(args, unit);
  uint32_t g = 0;
  for (; NumHeads(args) - g >= 8; g += 8)
    Heads<kType, 8>::Attend(args, unit, queries, g, &between, partial);
  switch (NumHeads(args) - g) {
    case 7:
      return Heads<kType, 7>::Attend(args, unit, queries, g, &between, partial);
    case 6:
      return Heads<kType, 6>::Attend(args, unit, queries, g, &between, partial);
    case 5:
      return Heads<kType, 5>::Attend(args, unit, queries, g, &between, partial);
    case 4:
      return Heads<kType, 4>::Attend(args, unit, queries, g, &between, partial);
    case 3:
      return Heads<kType, 3>::Attend(args, unit, queries, g, &between, partial);
    case 2:
      return Heads<kType, 2>::Attend(args, unit, queries, g, &between, partial);
    case 1:
      return Heads<kType, 1>::Attend(args, unit, queries, g, &between, partial);
    default:
      return;
  }
}
}  // namespace

void Avx512AttentionUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
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
