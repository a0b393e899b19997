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
#include "kernels/q8_scale.h"
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
        sums[t] += static_cast<float>(dot[0] + dot[1]) * act.scale * scales.scale[0];
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

void PrepareF32(const float* x, void* target, std::uint32_t /*cols*/, std::uint32_t begin,
                std::uint32_t end) {
  std::memcpy(static_cast<float*>(target) + begin, x + begin, (end - begin) * sizeof(float));
}

std::uint64_t BytesBf16(std::uint32_t cols) {
  return RoundUp64(std::uint64_t{cols} * sizeof(std::uint16_t));
}

void PrepareBf16(const float* x, void* target, std::uint32_t /*cols*/, std::uint32_t begin,
                 std::uint32_t end) {
  for (std::uint32_t i = begin; i < end; ++i)
    StoreElement(static_cast<std::uint8_t*>(target), i, DType::kBf16, x[i]);
}

std::uint64_t BytesQ8(std::uint32_t cols) {
  return RoundUp64(std::uint64_t{cols}) +
         RoundUp64(std::uint64_t{cols / kQuantElements} * sizeof(Q8Scale));
}

Q8Scale QuantizeBlock(const float* x, std::int8_t* q) {
  std::uint32_t greatest = 0;
  for (std::uint32_t i = 0; i < kQuantElements; ++i)
    greatest = std::max(greatest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  const bool usable = IsQ8Usable(greatest);
  const float scale = usable ? RoundedQ8Scale(greatest) : 1.0f;
  const float inverse = 1.0f / scale;
  std::int32_t sum[2] = {};
  for (std::uint32_t i = 0; i < kQuantElements; ++i) {
    q[i] = usable ? static_cast<std::int8_t>(std::lrintf(x[i] * inverse)) : std::int8_t{0};
    sum[i / 16] += q[i];
  }
  return MakeQ8Scale(greatest, scale, sum[0], sum[1]);
}

void PrepareQ8(const float* x, void* target, std::uint32_t cols, std::uint32_t begin,
               std::uint32_t end) {
  CHECK(cols % kQuantElements == 0 && begin % kQuantElements == 0 && end % kQuantElements == 0);
  auto* q = static_cast<std::int8_t*>(target);
  std::uint8_t* scales = static_cast<std::uint8_t*>(target) + RoundUp64(cols);
  for (std::uint32_t b = begin / kQuantElements; b < end / kQuantElements; ++b) {
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

// d is rounded before q, which then differs from x / d by half at most: the greatest quotient is
// 127 (1 + 2^-8) and rounds to 127. Returns the bits of d.
std::uint16_t QuantizeKv(const float* x, std::int8_t* q) {
  std::uint32_t greatest = 0;
  for (std::uint32_t i = 0; i < kKvScaleValues; ++i)
    greatest = std::max(greatest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  const float amax = std::bit_cast<float>(greatest);
  const bool usable = greatest < 0x7f800000u && amax >= 0x1p-100f;
  std::uint16_t bits = usable ? FloatToBf16(amax / 127.0f) : std::uint16_t{0};
  if (greatest >= 0x7f800000u) bits = 0x7fc0;
  const float inverse = usable ? 1.0f / Bf16ToFloat(bits) : 0.0f;
  for (std::uint32_t i = 0; i < kKvScaleValues; ++i)
    q[i] = usable ? static_cast<std::int8_t>(std::lrintf(x[i] * inverse)) : std::int8_t{0};
  return bits;
}

void StoreKvQ8(const StoreKvArgs& args) {
  CHECK(args.head_dim % kKvScaleValues == 0);
  for (std::uint32_t h = 0; h < args.num_kv_heads; ++h) {
    std::uint8_t* k_tile = args.k_tile + h * args.head_bytes;
    std::uint8_t* v_tile = args.v_tile + h * args.head_bytes;
    for (std::size_t d = 0; d < args.head_dim; d += kKvScaleValues) {
      const std::size_t source = std::size_t{h} * args.head_dim + d;
      std::int8_t q[kKvScaleValues];
      const std::uint16_t k_scale = QuantizeKv(args.k + source, q);
      std::memcpy(k_tile + KvScaleAt(args.head_dim, d, args.lane), &k_scale, sizeof(k_scale));
      for (std::size_t i = 0; i < kKvScaleValues; ++i)
        k_tile[KvQ8KeyAt(d + i, args.lane)] = static_cast<std::uint8_t>(q[i] + 128);
      const std::uint16_t v_scale = QuantizeKv(args.v + source, q);
      std::memcpy(v_tile + KvScaleAt(args.head_dim, d, args.lane), &v_scale, sizeof(v_scale));
      for (std::size_t i = 0; i < kKvScaleValues; ++i)
        v_tile[KvQ8ValueAt(args.head_dim, d + i, args.lane)] = static_cast<std::uint8_t>(q[i]);
    }
  }
}

void StoreKv(const StoreKvArgs& args) {
  if (args.dtype == DType::kQ8_0) return StoreKvQ8(args);
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

// The query of Q8_0: bytes, and a scale for every 32 of them.
struct Q8Query {
  std::int8_t* bytes;
  float* scales;
};

Q8Query QuantizeQuery(const AttentionArgs& args, const float* q, float* room) {
  const Q8Query query = {reinterpret_cast<std::int8_t*>(room), room + args.head_dim / 4};
  for (std::size_t d = 0; d < args.head_dim; d += kKvScaleValues)
    query.scales[d / kKvScaleValues] = QuantizeBlock(q + d, query.bytes + d).scale;
  return query;
}

// Query times key; the sum over 32 is exact.
float DotBytes(const AttentionArgs& args, const Q8Query& query, const std::uint8_t* k_tile,
               std::uint32_t lane) {
  float dot = 0;
  for (std::size_t d = 0; d < args.head_dim; d += kKvScaleValues) {
    std::int32_t sum = 0;
    for (std::size_t i = d; i < d + kKvScaleValues; ++i)
      sum += query.bytes[i] * (k_tile[KvQ8KeyAt(i, lane)] - 128);
    dot += static_cast<float>(sum) * LoadKvScale(k_tile, args.head_dim, d, lane) *
           query.scales[d / kKvScaleValues];
  }
  return dot;
}

float DotFloats(const AttentionArgs& args, const float* q, const std::uint8_t* k_tile,
                std::uint32_t lane) {
  float dot = 0;
  for (std::size_t d = 0; d < args.head_dim; ++d)
    dot += q[d] * LoadElement(k_tile, d * kTileTokens + lane, args.dtype);
  return dot;
}

// Scores first, then the greatest, then the values.
void AttendHead(const AttentionArgs& args, const AttentionUnit& unit, std::uint32_t g,
                float* partial) {
  const float* q = args.q + std::size_t{g} * args.head_dim;
  float* out = partial + std::size_t{g} * args.head_dim;
  float* scores = AttentionKernelScratch(args);
  const bool of_bytes = args.dtype == DType::kQ8_0;
  const Q8Query query = of_bytes ? QuantizeQuery(args, q, scores + kAttentionUnit) : Q8Query{};
  float maximum = -INFINITY;
  for (std::uint32_t i = 0; i < unit.num_tiles; ++i) {
    for (std::uint32_t lane = FirstLane(unit, i); lane < EndLane(unit, i); ++lane) {
      const float dot =
          of_bytes ? DotBytes(args, query, unit.k[i], lane) : DotFloats(args, q, unit.k[i], lane);
      const float score = dot * args.scale;
      scores[i * kTileTokens + lane] = score;
      maximum = std::max(maximum, score);
    }
  }
  float sum = 0;
  std::memset(out, 0, args.head_dim * sizeof(float));
  for (std::uint32_t i = 0; i < unit.num_tiles; ++i) {
    for (std::uint32_t lane = FirstLane(unit, i); lane < EndLane(unit, i); ++lane) {
      const float weight = std::exp(scores[i * kTileTokens + lane] - maximum);
      sum += weight;
      for (std::size_t d = 0; d < args.head_dim; ++d)
        out[d] += weight * LoadValue(unit.v[i], args.head_dim, d, lane, args.dtype);
    }
  }
  partial[std::size_t{args.group} * args.head_dim + g] = maximum;
  partial[std::size_t{args.group} * (args.head_dim + 1) + g] = sum;
}

void AttendUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
  for (std::uint32_t g = 0; g < args.group; ++g)
    AttendHead(args, unit, g, partial);
}

void Attention(const AttentionArgs& args) {
  AttendWhole(AttendUnit, args);
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
    .attention_unit = AttendUnit,
    .attention_heads = 0,
    .swiglu = SwiGlu,
    .exp = Exp,
    .logit_stats = LogitStats,
    .logit_weights = LogitWeights,
    .select = Select,
};

}  // namespace kvrm
