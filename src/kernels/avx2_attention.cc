// SPDX-License-Identifier: Apache-2.0
// Attention with AVX2: all query heads of a KV head share one pass over its K and V.
#include "kernels/avx2_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

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
}  // namespace

void Avx2Attention(const AttentionArgs& args) {
  switch (args.dtype) {
    case DType::kF32:
      return AttendType<DType::kF32>(args);
    case DType::kF16:
      return AttendType<DType::kF16>(args);
    default:
      return AttendType<DType::kBf16>(args);
  }
}

}  // namespace kvrm
