// SPDX-License-Identifier: Apache-2.0
// Attention with AVX-512: all query heads of a KV head share one pass over its K and V.
#include "kernels/avx512_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

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
}  // namespace

void Avx512Attention(const AttentionArgs& args) {
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
