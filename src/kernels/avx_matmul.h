// SPDX-License-Identifier: Apache-2.0
// What the products of all AVX tables do alike: one instance for each type of weights.
//
// HAZARD: included under instruction-set flags, as avx512_lanes.h: everything here has internal
// linkage, and a file that includes it has its own.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// The columns of one pass. All of them, but for the negative control of the invariance suite.
struct Columns {
  uint32_t begin;
  uint32_t end;
};

// `Tokens::Run<kType>(args, columns)` is the product of all tokens over some columns.
template <typename Tokens, DType kType>
void MatMul(const MatMulArgs& args) {
#ifdef KVRM_BREAK_INVARIANCE
  // The negative control of the invariance suite: another order of summation in a batch.
  if (args.num_tokens > 1) {
    const uint32_t middle = args.w.cols / 64 * 32;
    Tokens::template Run<kType>(args, Columns{0, middle});
    MatMulArgs rest = args;
    rest.bias = nullptr;
    rest.accumulate = true;
    Tokens::template Run<kType>(rest, Columns{middle, args.w.cols});
    return;
  }
#endif
  Tokens::template Run<kType>(args, Columns{0, args.w.cols});
  // The compiler leaves it out where vectors are arguments, as they are here. Whoever runs SSE code
  // next would pay for it: a sampler takes 30 times as long.
  _mm256_zeroupper();
}

template <typename Tokens>
void MatMulOfType(const MatMulArgs& args) {
  switch (args.w.type) {
    case DType::kF32:
      return MatMul<Tokens, DType::kF32>(args);
    case DType::kF16:
      return MatMul<Tokens, DType::kF16>(args);
    case DType::kBf16:
      return MatMul<Tokens, DType::kBf16>(args);
    case DType::kQ8_0:
      return MatMul<Tokens, DType::kQ8_0>(args);
    case DType::kQ4_0:
      return MatMul<Tokens, DType::kQ4_0>(args);
    case DType::kQ5_0:
      return MatMul<Tokens, DType::kQ5_0>(args);
    case DType::kQ4_K:
      return MatMul<Tokens, DType::kQ4_K>(args);
    case DType::kQ5_K:
      return MatMul<Tokens, DType::kQ5_K>(args);
    default:
      return MatMul<Tokens, DType::kQ6_K>(args);
  }
}

}  // namespace
}  // namespace kvrm
