// SPDX-License-Identifier: Apache-2.0
// Matrix products of bfloat16 pairs, `vdpbf16ps`, for processors on which that multiplies twice as
// much as `vfmadd` (Zen 4 and 5; on Sapphire Rapids it is half as much). Compiled with -mavx512bf16
// besides the flags of avx512.cc; the hazard of that is in avx512_lanes.h.
//
// Activations are rounded to bfloat16. The instruction multiplies exactly, adds the two products of
// a lane to its sum in a fixed order, and takes and leaves subnormal numbers as zero.
#include "kernels/avx512_lanes.h"
#include "kernels/avx512_passes.h"
#include "kernels/avx_matmul.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

constexpr size_t kPairBytes = kOutTile * 4;  // two columns of a tile
constexpr size_t kStretch = 128;             // pairs: 16 KB

__m512bh AsPairs(__m512i bits) {
  return reinterpret_cast<__m512bh>(bits);
}

template <uint32_t kTokens, bool kSingle>
struct DotTile {
  const uint8_t* x[kTokens];
  __m512 sum[kTokens][kGroups];

  // `mask` takes the columns of the pair that there are.
  inline __attribute__((always_inline)) void Step(const uint8_t* w, size_t pair, uint32_t mask) {
    __m512i weights[kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      weights[g] = _mm512_load_si512(w + 64 * g);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const uint32_t two = LoadAs<uint32_t>(x[t] + pair * 4) & mask;
      const __m512i value = _mm512_set1_epi32(static_cast<int32_t>(two));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_dpbf16_ps(sum[t][g], AsPairs(weights[g]), AsPairs(value));
    }
  }

  static void Run(const MatMulArgs& args, uint32_t token, const Pass& pass) {
    const uint8_t* w = Bytes(args.w.data) +
                       pass.out / kOutTile * OutTileBytes(DType::kBf16, args.w.cols) +
                       pass.begin * kPairBytes;
    DotTile tile;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      tile.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
    LoadSums<kTokens>(args, token, pass, tile.sum);
    const size_t whole = args.w.cols / 2;
    uint32_t until_fetch = pass.index;
    for (size_t pair = pass.begin; pair < pass.end; ++pair, w += kPairBytes) {
      if (kSingle || until_fetch-- == 0) {
        until_fetch = pass.num_passes - 1;
        for (size_t i = 0; i < kPairBytes; i += 64)
          __builtin_prefetch(w + pass.distance + i, 0, kSingle && kTokens < 8 ? 3 : 2);
      }
      if (__builtin_expect(pair == whole, 0)) {
        tile.Step(w, pair, 0xffff);
      } else {
        tile.Step(w, pair, ~0u);
      }
    }
    StoreSums<kTokens>(args, token, pass, tile.sum);
  }
};

template <uint32_t kTokens>
uint32_t DotTokens(const MatMulArgs& args, uint32_t t, Pass* pass) {
  for (; args.num_tokens - t >= kTokens; t += kTokens) {
    if (pass->num_passes == 1) {
      DotTile<kTokens, true>::Run(args, t, *pass);
    } else {
      DotTile<kTokens, false>::Run(args, t, *pass);
    }
    ++pass->index;
  }
  return t;
}

void DotPasses(const MatMulArgs& args, Pass pass) {
  uint32_t t = DotTokens<8>(args, 0, &pass);
  t = DotTokens<4>(args, t, &pass);
  t = DotTokens<2>(args, t, &pass);
  DotTokens<1>(args, t, &pass);
}

struct AllTokens {
  template <DType kType>
  static void Run(const MatMulArgs& args, Columns columns) {
    const size_t begin = columns.begin / 2;
    const size_t end = (size_t{columns.end} + 1) / 2;
    if (NumPasses(args.num_tokens) == 1) {
      for (uint32_t out = args.out_begin; out < args.out_end; out += kOutTile)
        DotPasses(args, {begin, end, out, true, true, kAhead, 1, 0});
      return;
    }
    ForChunks(args, [&](const MatMulArgs& chunk) {
      ForStretches(chunk, begin, end, kStretch, 2, [&](const Pass& p) { DotPasses(chunk, p); });
    });
  }
};

void Bf16MatMul(const MatMulArgs& args) {
  MatMul<AllTokens, DType::kBf16>(args);
}

constexpr CpuKernels Table() {
  CpuKernels table = {};
  table.name = "avx512_bf16";
  table.mat[static_cast<int>(DType::kBf16)] = {.act = ActFormat::kBf16,
                                               .packed_bytes = TiledBytes<DType::kBf16>,
                                               .pack = TiledPack<DType::kBf16>,
                                               .matmul = Bf16MatMul,
                                               .row = TiledRow<DType::kBf16>};
  return table;
}

}  // namespace

const CpuKernels kAvx512Bf16Kernels = Table();

}  // namespace kvrm
