// SPDX-License-Identifier: Apache-2.0
// How tokens share passes over a tile of weights: what the AVX-512 products with many forms of
// weights have in common.
//
// Many tokens take a tile in stretches of its columns that stay in the nearest cache while all
// tokens pass over them, 8 at a time; their sums wait in scratch. An output element is one chain of
// sums in the order of the columns in all of these forms.
//
// HAZARD: included under instruction-set flags: everything here has internal linkage.
#pragma once

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

constexpr uint32_t kGroups = kOutTile / kLanes;

// So far ahead of a pass over a tile its weights are fetched: the hardware alone leaves a third of
// the bandwidth unused once the arithmetic takes as long as the bytes.
constexpr size_t kAhead = 6144;

constexpr uint32_t kChunkTokens = 64;
constexpr size_t kSumBytes = kOutTile * sizeof(float);  // of a token

// One pass of a few tokens over [begin, end) of a tile, in blocks or whatever its columns lie in.
struct Pass {
  size_t begin;
  size_t end;
  uint32_t out;  // first row of the tile
  bool first;    // stretch of the columns: sums start from zero, not from scratch
  bool last;     // sums are the outputs and do not go back to scratch
  // A single pass fetches what lies `distance` bytes ahead. Of several the `index`-th fetches its
  // part of every block, `distance` being the next stretch: the memory is at work in all of them.
  size_t distance;
  uint32_t num_passes;
  uint32_t index;
};

// The sums of kTokens tokens at the start of a pass, and what becomes of them at its end.
template <uint32_t kTokens>
inline __attribute__((always_inline)) void LoadSums(const MatMulArgs& args, uint32_t token,
                                                    const Pass& pass, __m512 (*sum)[kGroups]) {
  const float* sums = static_cast<const float*>(args.scratch) + size_t{token} * kOutTile;
  KVRM_UNROLL
  for (uint32_t t = 0; t < kTokens; ++t) {
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      sum[t][g] =
          pass.first ? _mm512_setzero_ps() : _mm512_load_ps(sums + t * kOutTile + g * kLanes);
  }
}

template <uint32_t kTokens>
inline __attribute__((always_inline)) void StoreSums(const MatMulArgs& args, uint32_t token,
                                                     const Pass& pass,
                                                     const __m512 (*sum)[kGroups]) {
  float* sums = static_cast<float*>(args.scratch) + size_t{token} * kOutTile;
  KVRM_UNROLL
  for (uint32_t t = 0; t < kTokens; ++t) {
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g) {
      if (pass.last) {
        StoreOutputs(args, token + t, pass.out + g * kLanes, sum[t][g]);
      } else {
        _mm512_store_ps(sums + t * kOutTile + g * kLanes, sum[t][g]);
      }
    }
  }
}

// Passes of 8, 4, 2 and 1 tokens.
inline uint32_t NumPasses(uint32_t num_tokens) {
  return num_tokens / 8 + num_tokens / 4 % 2 + num_tokens / 2 % 2 + num_tokens % 2;
}

// take(chunk) for at most kChunkTokens tokens at a time.
template <typename Take>
void ForChunks(const MatMulArgs& args, const Take& take) {
  for (uint32_t t = 0; t < args.num_tokens; t += kChunkTokens) {
    MatMulArgs chunk = args;
    chunk.x = Bytes(args.x) + t * args.x_stride;
    chunk.y = args.y + t * args.y_stride;
    chunk.num_tokens = args.num_tokens - t < kChunkTokens ? args.num_tokens - t : kChunkTokens;
    take(chunk);
  }
}

// take(pass) for every stretch of [begin, end), in every tile; `most` is the length of a stretch,
// in steps of `step_columns` columns. Stretches are of about one length: what a pass costs whatever
// its length is not spent on a remainder.
template <typename Take>
void ForStretches(const MatMulArgs& args, size_t begin, size_t end, size_t most,
                  uint32_t step_columns, const Take& take) {
  const size_t num_stretches = (end - begin + most - 1) / most;
  const size_t stretch = (end - begin + num_stretches - 1) / num_stretches;
  const size_t bytes = OutTileBytes(args.w.type, static_cast<uint32_t>(stretch) * step_columns);
  for (uint32_t out = args.out_begin; out < args.out_end; out += kOutTile) {
    for (size_t b = begin; b < end; b += stretch) {
      const size_t next = end - b < stretch ? end : b + stretch;
      take(Pass{b, next, out, b == begin, next == end, bytes, NumPasses(args.num_tokens), 0});
    }
  }
}

}  // namespace
}  // namespace kvrm
