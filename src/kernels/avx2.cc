// SPDX-License-Identifier: Apache-2.0
// The table of AVX2 kernels, and the kernels over single rows. Compiled, as are the other
// avx2_*.cc, with -mavx2 -mfma -mf16c; the hazard of that is in avx512_lanes.h.
#include "kernels/avx2_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

uint64_t BytesQ8(uint32_t cols) {
  const uint64_t scales = cols / kBlock * sizeof(Q8Scale);
  return (uint64_t{cols} + 63) / 64 * 64 + (scales + 63) / 64 * 64;
}

void PrepareQ8(const float* x, void* target, uint32_t cols, uint32_t begin, uint32_t end) {
  auto* q = static_cast<int8_t*>(target);
  uint8_t* scales = static_cast<uint8_t*>(target) + (size_t{cols} + 63) / 64 * 64;
  for (size_t b = begin / kBlock; b < end / kBlock; ++b) {
    const Q8Scale scale = QuantizeBlock(x + b * kBlock, q + b * kBlock);
    __builtin_memcpy(scales + b * sizeof(scale), &scale, sizeof(scale));
  }
}
void RmsNorm(const float* x, const float* w, float eps, float* y, uint32_t n) {
  __m256 squares = _mm256_setzero_ps();
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256 values = _mm256_maskload_ps(x + i, TailMask(n - i));
    squares = _mm256_fmadd_ps(values, values, squares);
  }
  const float mean = SumOf(squares) / static_cast<float>(n);
  const __m256 scale = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    const __m256 values = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(values, _mm256_maskload_ps(w + i, mask)));
  }
}

void Attention(const AttentionArgs& args) {
  AttendWhole(Avx2AttentionUnit, args);
}

void SwiGlu(const float* gate, const float* up, float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    const __m256 g = _mm256_maskload_ps(gate + i, mask);
    const __m256 e = Exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, mask)));
  }
}

void ExpRow(const float* x, float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += kLanes) {
    const __m256i mask = TailMask(n - i);
    _mm256_maskstore_ps(y + i, mask, Exp(_mm256_maskload_ps(x + i, mask)));
  }
}

uint32_t ChunkEnd(uint32_t begin, uint32_t n) {
  return n - begin < kLogitChunk ? n : begin + kLogitChunk;
}

// x, and in the lanes beyond the mask `other`.
__m256 LoadOr(const float* x, __m256i mask, __m256 other) {
  return _mm256_blendv_ps(other, _mm256_maskload_ps(x, mask), _mm256_castsi256_ps(mask));
}

// e^x in the lanes of the mask, else 0.
__m256 MaskedExp(__m256 x, __m256i mask) {
  return _mm256_and_ps(Exp(x), _mm256_castsi256_ps(mask));
}

void LogitStats(const float* x, uint32_t n, float* maxima, float* sums) {
  for (uint32_t begin = 0; begin < n; begin += kLogitChunk) {
    const uint32_t end = ChunkEnd(begin, n);
    __m256 most = _mm256_set1_ps(x[begin]);
    for (uint32_t i = begin; i < end; i += kLanes)
      most = _mm256_max_ps(most, LoadOr(x + i, TailMask(end - i), most));
    const float greatest = MaxOf(most);
    const __m256 all = _mm256_set1_ps(greatest);
    __m256 sum = _mm256_setzero_ps();
    for (uint32_t i = begin; i < end; i += kLanes) {
      const __m256i mask = TailMask(end - i);
      const __m256 values = _mm256_maskload_ps(x + i, mask);
      sum = _mm256_add_ps(sum, MaskedExp(_mm256_sub_ps(values, all), mask));
      sum = _mm256_fmadd_ps(values, _mm256_setzero_ps(), sum);  // NaN unless finite
    }
    *maxima++ = greatest;
    *sums++ = SumOf(sum);
  }
}

void LogitWeights(const float* x, uint32_t n, float greatest, float scale, float* sums) {
  const __m256 all = _mm256_set1_ps(greatest);
  const __m256 factor = _mm256_set1_ps(scale);
  for (uint32_t begin = 0; begin < n; begin += kLogitChunk) {
    const uint32_t end = ChunkEnd(begin, n);
    __m256 sum = _mm256_setzero_ps();
    for (uint32_t i = begin; i < end; i += kLanes) {
      const __m256i mask = TailMask(end - i);
      const __m256 below = _mm256_sub_ps(_mm256_maskload_ps(x + i, mask), all);
      sum = _mm256_add_ps(sum, MaskedExp(_mm256_mul_ps(below, factor), mask));
    }
    *sums++ = SumOf(sum);
  }
}

template <DType kType, ActFormat kAct>
constexpr MatKernel kMat = {.act = kAct,
                            .packed_bytes = TiledBytes<kType>,
                            .pack = TiledPack<kType>,
                            .matmul = Avx2MatMul,
                            .row = TiledRow<kType>};

}  // namespace

const CpuKernels kAvx2Kernels = {
    .name = "avx2",
    .mat = {kMat<DType::kF32, ActFormat::kF32>, kMat<DType::kF16, ActFormat::kF32>,
            kMat<DType::kBf16, ActFormat::kF32>, kMat<DType::kQ8_0, ActFormat::kQ8>,
            kMat<DType::kQ4_0, ActFormat::kQ8>, kMat<DType::kQ5_0, ActFormat::kQ8>,
            kMat<DType::kQ4_K, ActFormat::kQ8>, kMat<DType::kQ5_K, ActFormat::kQ8>,
            kMat<DType::kQ6_K, ActFormat::kQ8>},
    .act = {{nullptr, nullptr}, {nullptr, nullptr}, {BytesQ8, PrepareQ8}},
    .rms_norm = RmsNorm,
    .rope = nullptr,
    .store_kv = nullptr,
    .attention = Attention,
    .attention_unit = Avx2AttentionUnit,
    .attention_heads = 0,
    .swiglu = SwiGlu,
    .exp = ExpRow,
    .logit_stats = LogitStats,
    .logit_weights = LogitWeights,
    .select = nullptr,
};

}  // namespace kvrm