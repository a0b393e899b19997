// SPDX-License-Identifier: Apache-2.0
// The specification: every kernel of the default mode in plain C++. Float weights meet float
// activations; quantised weights meet int8 activations in exact integer sums per block of 32,
// scaled in float in the order of the blocks.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/cpu_kernels.h"
#include "kernels/kv_element.h"
#include "kernels/quant_block.h"
#include "step/layout.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kTokenTile = 16;  // Tokens that share one decoding of a weight block.

template <typename T>
T RoundUp64(T value) {
  return (value + 63) / 64 * 64;
}

const std::uint8_t* WeightRow(const PackedMatrix& w, std::uint32_t row) {
  return static_cast<const std::uint8_t*>(w.data) + row * FileRowBytes(w.type, w.cols);
}

const std::uint8_t* ActRow(const MatMulArgs& args, std::uint32_t token) {
  return static_cast<const std::uint8_t*>(args.x) + token * args.x_stride;
}

// sums[t] over columns [begin, end) of weight row `row` and tokens [token, token + count).
using DotRows = void (*)(const MatMulArgs& args, std::uint32_t row, std::uint32_t token,
                         std::uint32_t count, std::uint32_t begin, std::uint32_t end, float* sums);

void DotFloat(const MatMulArgs& args, std::uint32_t row, std::uint32_t token, std::uint32_t count,
              std::uint32_t begin, std::uint32_t end, float* sums) {
  float weights[kQuantElements];
  for (std::uint32_t k = begin; k < end; k += kQuantElements) {
    const std::uint32_t n = std::min(kQuantElements, end - k);
    DecodeWeights(args.w.type, WeightRow(args.w, row), k, n, weights);
    for (std::uint32_t t = 0; t < count; ++t) {
      float x[kQuantElements];
      std::memcpy(x, ActRow(args, token + t) + k * sizeof(float), n * sizeof(float));
      for (std::uint32_t i = 0; i < n; ++i)
        sums[t] += weights[i] * x[i];
    }
  }
}

void DotQ8(const MatMulArgs& args, std::uint32_t row, std::uint32_t token, std::uint32_t count,
           std::uint32_t begin, std::uint32_t end, float* sums) {
  const std::int32_t zero = QuantZero(args.w.type);
  for (std::uint32_t b = begin / kQuantElements; b < end / kQuantElements; ++b) {
    QuantBlock block;
    DecodeQuantBlock(args.w.type, WeightRow(args.w, row), b, &block);
    const QuantScales scales = DecodeScales(args.w.type, block);
    for (std::uint32_t t = 0; t < count; ++t) {
      const std::uint8_t* x = ActRow(args, token + t);
      std::int8_t q[kQuantElements];
      Q8Scale act;
      std::memcpy(q, x + b * kQuantElements, sizeof(q));
      std::memcpy(&act, x + RoundUp64(args.w.cols) + b * sizeof(Q8Scale), sizeof(act));
      std::int32_t dot[2] = {};
      for (std::uint32_t i = 0; i < kQuantElements; ++i)
        dot[i / 16] += (block.q[i] - zero) * q[i];
      // One scale for the whole block in all formats but Q6_K.
      if (args.w.type == DType::kQ6_K) {
        sums[t] += static_cast<float>(dot[0]) * (scales.scale[0] * act.scale);
        sums[t] += static_cast<float>(dot[1]) * (scales.scale[1] * act.scale);
      } else {
        sums[t] += static_cast<float>(dot[0] + dot[1]) * (scales.scale[0] * act.scale);
        sums[t] -= scales.min * act.sum_scale;
      }
    }
  }
}

void MatMulColumns(const MatMulArgs& args, std::uint32_t begin, std::uint32_t end, DotRows dot) {
  for (std::uint32_t o = args.out_begin; o < args.out_end; ++o) {
    for (std::uint32_t token = 0; token < args.num_tokens; token += kTokenTile) {
      const std::uint32_t count = std::min(kTokenTile, args.num_tokens - token);
      float sums[kTokenTile] = {};
      dot(args, o, token, count, begin, end, sums);
      for (std::uint32_t t = 0; t < count; ++t) {
        float* y = args.y + (token + t) * args.y_stride + o;
        const float value = args.bias != nullptr ? sums[t] + args.bias[o] : sums[t];
        *y = args.accumulate ? *y + value : value;
      }
    }
  }
}

void MatMul(const MatMulArgs& args, DotRows dot) {
#ifdef KVRM_BREAK_INVARIANCE
  // The negative control of the invariance suite: another order of summation in a batch.
  if (args.num_tokens > 1) {
    const std::uint32_t middle = args.w.cols / 2 / kQuantElements * kQuantElements;
    MatMulColumns(args, 0, middle, dot);
    MatMulArgs rest = args;
    rest.bias = nullptr;
    rest.accumulate = true;
    MatMulColumns(rest, middle, args.w.cols, dot);
    return;
  }
#endif
  MatMulColumns(args, 0, args.w.cols, dot);
}

void MatMulFloat(const MatMulArgs& args) {
  MatMul(args, DotFloat);
}

void MatMulQ8(const MatMulArgs& args) {
  MatMul(args, DotQ8);
}

void Row(const PackedMatrix& w, std::uint32_t row, float* target) {
  for (std::uint32_t k = 0; k < w.cols; k += kQuantElements)
    DecodeWeights(w.type, WeightRow(w, row), k, std::min(kQuantElements, w.cols - k), target + k);
}

std::uint64_t BytesF32(std::uint32_t cols) {
  return RoundUp64(std::uint64_t{cols} * sizeof(float));
}

void PrepareF32(const float* x, void* target, std::uint32_t cols) {
  std::memcpy(target, x, cols * sizeof(float));
}

std::uint64_t BytesBf16(std::uint32_t cols) {
  return RoundUp64(std::uint64_t{cols} * sizeof(std::uint16_t));
}

void PrepareBf16(const float* x, void* target, std::uint32_t cols) {
  for (std::uint32_t i = 0; i < cols; ++i)
    StoreElement(static_cast<std::uint8_t*>(target), i, DType::kBf16, x[i]);
}

std::uint64_t BytesQ8(std::uint32_t cols) {
  return RoundUp64(std::uint64_t{cols}) +
         RoundUp64(std::uint64_t{cols / kQuantElements} * sizeof(Q8Scale));
}

// Magnitudes are compared as bits: Inf and NaN are then the greatest and cannot hide.
Q8Scale QuantizeBlock(const float* x, std::int8_t* q) {
  std::uint32_t greatest = 0;
  for (std::uint32_t i = 0; i < kQuantElements; ++i)
    greatest = std::max(greatest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  const float amax = std::bit_cast<float>(greatest);
  // Below 2^-100 the reciprocal would overflow before the values matter.
  const bool usable = greatest < 0x7f800000u && amax >= 0x1p-100f;
  const float inverse = usable ? 127.0f / amax : 0.0f;
  Q8Scale result = {};
  std::int32_t sum[2] = {};
  for (std::uint32_t i = 0; i < kQuantElements; ++i) {
    q[i] = usable ? static_cast<std::int8_t>(std::lrintf(x[i] * inverse)) : std::int8_t{0};
    sum[i / 16] += q[i];
  }
  if (usable) result.scale = amax / 127.0f;
  if (greatest >= 0x7f800000u) result.scale = std::bit_cast<float>(0x7fc00000u);
  result.sum_scale = result.scale * static_cast<float>(sum[0] + sum[1]);
  result.start[kStart128] = -128 * (sum[0] + sum[1]);
  result.start[kStart8] = -8 * (sum[0] + sum[1]);
  result.start[kStart16] = -16 * (sum[0] + sum[1]);
  result.start[kStart32] = -32 * sum[0];
  result.start[kStart32 + 1] = -32 * sum[1];
  return result;
}

void PrepareQ8(const float* x, void* target, std::uint32_t cols) {
  CHECK(cols % kQuantElements == 0);
  auto* q = static_cast<std::int8_t*>(target);
  std::uint8_t* scales = static_cast<std::uint8_t*>(target) + RoundUp64(cols);
  for (std::uint32_t b = 0; b < cols / kQuantElements; ++b) {
    const Q8Scale scale = QuantizeBlock(x + b * kQuantElements, q + b * kQuantElements);
    std::memcpy(scales + b * sizeof(scale), &scale, sizeof(scale));
  }
}

void RmsNorm(const float* x, const float* w, float eps, float* y, std::uint32_t n) {
  double sum = 0;
  for (std::uint32_t i = 0; i < n; ++i)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const float mean = static_cast<float>(sum / n);
  const float scale = 1.0f / std::sqrt(mean + eps);
  for (std::uint32_t i = 0; i < n; ++i)
    y[i] = x[i] * scale * w[i];
}

void Rope(const RopeArgs& args) {
  const std::uint32_t half = args.rope_dim / 2;
  const bool interleaved = args.style == RopeStyle::kInterleaved;
  for (std::uint32_t h = 0; h < args.num_heads; ++h) {
    float* x = args.x + std::size_t{h} * args.head_dim;
    for (std::uint32_t i = 0; i < half; ++i) {
      float* a = x + (interleaved ? 2 * i : i);
      float* b = interleaved ? a + 1 : a + half;
      const float x0 = *a;
      const float x1 = *b;
      *a = x0 * args.cosine[i] - x1 * args.sine[i];
      *b = x0 * args.sine[i] + x1 * args.cosine[i];
    }
  }
}

void StoreKv(const StoreKvArgs& args) {
  for (std::uint32_t h = 0; h < args.num_kv_heads; ++h) {
    const std::size_t source = std::size_t{h} * args.head_dim;
    for (std::uint32_t d = 0; d < args.head_dim; ++d) {
      StoreElement(args.k_tile + h * args.head_bytes, d * kTileTokens + args.lane, args.dtype,
                   args.k[source + d]);
      StoreElement(args.v_tile + h * args.head_bytes, args.lane * args.head_dim + d, args.dtype,
                   args.v[source + d]);
    }
  }
}

struct Softmax {
  float maximum;
  float sum;
};

// Folds one unit into head `g`: scores first, then the new maximum, then the values.
void AttendUnit(const AttentionArgs& args, const AttentionUnit& unit, std::uint32_t g,
                Softmax* state) {
  const float* q = args.q + std::size_t{g} * args.head_dim;
  float* out = args.out + std::size_t{g} * args.head_dim;
  float* scores = args.scratch;
  float maximum = state->maximum;
  for (std::uint32_t i = 0; i < kUnitTiles; ++i) {
    for (std::uint32_t lane = unit.begin[i]; lane < unit.end[i]; ++lane) {
      float dot = 0;
      for (std::size_t d = 0; d < args.head_dim; ++d)
        dot += q[d] * LoadElement(unit.k[i], d * kTileTokens + lane, args.dtype);
      scores[i * kTileTokens + lane] = dot * args.scale;
      maximum = std::max(maximum, dot * args.scale);
    }
  }
  const float correction = std::exp(state->maximum - maximum);
  state->maximum = maximum;
  state->sum *= correction;
  for (std::size_t d = 0; d < args.head_dim; ++d)
    out[d] *= correction;
  for (std::uint32_t i = 0; i < kUnitTiles; ++i) {
    for (std::size_t lane = unit.begin[i]; lane < unit.end[i]; ++lane) {
      const float weight = std::exp(scores[i * kTileTokens + lane] - maximum);
      state->sum += weight;
      for (std::size_t d = 0; d < args.head_dim; ++d)
        out[d] += weight * LoadElement(unit.v[i], lane * args.head_dim + d, args.dtype);
    }
  }
}

void Attention(const AttentionArgs& args) {
  for (std::uint32_t g = 0; g < args.group; ++g) {
    float* out = args.out + std::size_t{g} * args.head_dim;
    std::memset(out, 0, args.head_dim * sizeof(float));
    Softmax state = {-INFINITY, 0};
    UnitWalk walk = StartUnits(args);
    AttentionUnit unit;
    while (NextUnit(&walk, &unit))
      AttendUnit(args, unit, g, &state);
    for (std::size_t d = 0; d < args.head_dim; ++d)
      out[d] /= state.sum;
  }
}

void SwiGlu(const float* gate, const float* up, float* y, std::uint32_t n) {
  for (std::uint32_t i = 0; i < n; ++i)
    y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void Exp(const float* x, float* y, std::uint32_t n) {
  for (std::uint32_t i = 0; i < n; ++i)
    y[i] = std::exp(x[i]);
}

// Zero for finite numbers, else NaN, which no sum loses.
float NanUnlessFinite(float x) {
  return x * 0.0f;
}

void LogitStats(const float* x, std::uint32_t n, float* maxima, float* sums) {
  for (std::uint32_t begin = 0; begin < n; begin += kLogitChunk) {
    const std::uint32_t end = std::min(n, begin + kLogitChunk);
    float greatest = x[begin];
    for (std::uint32_t i = begin; i < end; ++i)
      greatest = std::max(greatest, x[i]);
    double sum = 0;
    for (std::uint32_t i = begin; i < end; ++i)
      sum += static_cast<double>(std::exp(x[i] - greatest) + NanUnlessFinite(x[i]));
    *maxima++ = greatest;
    *sums++ = static_cast<float>(sum);
  }
}

void LogitWeights(const float* x, std::uint32_t n, float greatest, float scale, float* sums) {
  for (std::uint32_t begin = 0; begin < n; begin += kLogitChunk) {
    const std::uint32_t end = std::min(n, begin + kLogitChunk);
    double sum = 0;
    for (std::uint32_t i = begin; i < end; ++i)
      sum += static_cast<double>(std::exp((x[i] - greatest) * scale));
    *sums++ = static_cast<float>(sum);
  }
}

std::uint32_t Select(const LogitSelection& selection, std::uint32_t* ids) {
  std::uint32_t count = 0;
  for (std::uint32_t id = selection.begin; id < selection.end; ++id) {
    if (selection.x[id] >= selection.low && selection.x[id] < selection.high) ids[count++] = id;
  }
  return count;
}

constexpr MatKernel kFloat = {.act = ActFormat::kF32,
                              .packed_bytes = nullptr,
                              .pack = nullptr,
                              .matmul = MatMulFloat,
                              .row = Row};
constexpr MatKernel kQuantised = {.act = ActFormat::kQ8,
                                  .packed_bytes = nullptr,
                                  .pack = nullptr,
                                  .matmul = MatMulQ8,
                                  .row = Row};

}  // namespace

const CpuKernels kScalarKernels = {
    .name = "scalar",
    .mat = {kFloat, kFloat, kFloat, kQuantised, kQuantised, kQuantised, kQuantised, kQuantised,
            kQuantised},
    .act = {{BytesF32, PrepareF32}, {BytesBf16, PrepareBf16}, {BytesQ8, PrepareQ8}},
    .rms_norm = RmsNorm,
    .rope = Rope,
    .store_kv = StoreKv,
    .attention = Attention,
    .swiglu = SwiGlu,
    .exp = Exp,
    .logit_stats = LogitStats,
    .logit_weights = LogitWeights,
    .select = Select,
};

}  // namespace kvrm
