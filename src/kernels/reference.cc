// SPDX-License-Identifier: Apache-2.0
// The float32 model: weights dequantised as their formats define, float activations, sums in double
// rounded once. What the other tables' precision is measured against; speed is no concern.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/cpu_kernels.h"
#include "kernels/kv_element.h"
#include "kernels/quant_block.h"
#include "step/layout.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kTokenTile = 16;    // Tokens that share one dequantised block.
constexpr std::uint32_t kMaxHeadDim = 512;  // Of a model this program accepts.

const std::uint8_t* WeightRow(const PackedMatrix& w, std::uint32_t row) {
  return static_cast<const std::uint8_t*>(w.data) + row * FileRowBytes(w.type, w.cols);
}

void DotRows(const MatMulArgs& args, std::uint32_t row, std::uint32_t token, std::uint32_t count,
             double* sums) {
  float weights[kQuantElements];
  for (std::uint32_t k = 0; k < args.w.cols; k += kQuantElements) {
    const std::uint32_t n = std::min(kQuantElements, args.w.cols - k);
    DecodeWeights(args.w.type, WeightRow(args.w, row), k, n, weights);
    for (std::uint32_t t = 0; t < count; ++t) {
      float x[kQuantElements];
      std::memcpy(x,
                  static_cast<const std::uint8_t*>(args.x) + (token + t) * args.x_stride +
                      k * sizeof(float),
                  n * sizeof(float));
      for (std::uint32_t i = 0; i < n; ++i)
        sums[t] += static_cast<double>(weights[i]) * static_cast<double>(x[i]);
    }
  }
}

void MatMul(const MatMulArgs& args) {
  for (std::uint32_t o = args.out_begin; o < args.out_end; ++o) {
    for (std::uint32_t token = 0; token < args.num_tokens; token += kTokenTile) {
      const std::uint32_t count = std::min(kTokenTile, args.num_tokens - token);
      double sums[kTokenTile] = {};
      DotRows(args, o, token, count, sums);
      for (std::uint32_t t = 0; t < count; ++t) {
        float* y = args.y + (token + t) * args.y_stride + o;
        double value = sums[t];
        if (args.bias != nullptr) value += static_cast<double>(args.bias[o]);
        if (args.accumulate) value += static_cast<double>(*y);
        *y = static_cast<float>(value);
      }
    }
  }
}

void Row(const PackedMatrix& w, std::uint32_t row, float* target) {
  for (std::uint32_t k = 0; k < w.cols; k += kQuantElements)
    DecodeWeights(w.type, WeightRow(w, row), k, std::min(kQuantElements, w.cols - k), target + k);
}

void RmsNorm(const float* x, const float* w, float eps, float* y, std::uint32_t n) {
  double sum = 0;
  for (std::uint32_t i = 0; i < n; ++i)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double scale = 1 / std::sqrt(sum / n + static_cast<double>(eps));
  for (std::uint32_t i = 0; i < n; ++i)
    y[i] = static_cast<float>(static_cast<double>(x[i]) * scale * static_cast<double>(w[i]));
}

double Score(const AttentionArgs& args, const std::uint8_t* k_tile, std::uint32_t g,
             std::uint32_t lane) {
  const float* q = args.q + std::size_t{g} * args.head_dim;
  double dot = 0;
  for (std::size_t d = 0; d < args.head_dim; ++d)
    dot += static_cast<double>(q[d]) *
           static_cast<double>(LoadKey(k_tile, args.head_dim, d, lane, args.dtype));
  return dot * static_cast<double>(args.scale);
}

double GreatestScore(const AttentionArgs& args, const AttentionUnit& unit, std::uint32_t g) {
  double greatest = -std::numeric_limits<double>::infinity();
  for (std::uint32_t i = 0; i < unit.num_tiles; ++i) {
    for (std::uint32_t lane = FirstLane(unit, i); lane < EndLane(unit, i); ++lane)
      greatest = std::max(greatest, Score(args, unit.k[i], g, lane));
  }
  return greatest;
}

// Two passes, the textbook way: the maximum, then the weighted sum of the values. The maximum is
// rounded first, so that the weights are relative to what is handed on.
void AttendHead(const AttentionArgs& args, const AttentionUnit& unit, std::uint32_t g,
                float* partial) {
  const float maximum = static_cast<float>(GreatestScore(args, unit, g));
  double values[kMaxHeadDim] = {};
  double sum = 0;
  for (std::uint32_t i = 0; i < unit.num_tiles; ++i) {
    for (std::uint32_t lane = FirstLane(unit, i); lane < EndLane(unit, i); ++lane) {
      const double weight =
          std::exp(Score(args, unit.k[i], g, lane) - static_cast<double>(maximum));
      sum += weight;
      for (std::size_t d = 0; d < args.head_dim; ++d)
        values[d] +=
            weight * static_cast<double>(LoadValue(unit.v[i], args.head_dim, d, lane, args.dtype));
    }
  }
  for (std::size_t d = 0; d < args.head_dim; ++d)
    partial[std::size_t{g} * args.head_dim + d] = static_cast<float>(values[d]);
  partial[std::size_t{args.group} * args.head_dim + g] = maximum;
  partial[std::size_t{args.group} * (args.head_dim + 1) + g] = static_cast<float>(sum);
}

void AttendUnit(const AttentionArgs& args, const AttentionUnit& unit, float* partial) {
  CHECK(args.head_dim <= kMaxHeadDim);
  for (std::uint32_t g = 0; g < args.group; ++g)
    AttendHead(args, unit, g, partial);
}

void Attention(const AttentionArgs& args) {
  AttendWhole(AttendUnit, args);
}

void SwiGlu(const float* gate, const float* up, float* y, std::uint32_t n) {
  for (std::uint32_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(gate[i]);
    y[i] = static_cast<float>(x / (1 + std::exp(-x)) * static_cast<double>(up[i]));
  }
}

constexpr MatKernel kMat = {
    .act = ActFormat::kF32, .packed_bytes = nullptr, .pack = nullptr, .matmul = MatMul, .row = Row};

}  // namespace

// What is empty here has nothing to gain from double and comes from the scalar table.
const CpuKernels kReferenceKernels = {
    .name = "reference",
    .mat = {kMat, kMat, kMat, kMat, kMat, kMat, kMat, kMat, kMat},
    .act = {},
    .rms_norm = RmsNorm,
    .rope = nullptr,
    .store_kv = nullptr,
    .attention = Attention,
    .attention_unit = AttendUnit,
    .attention_heads = 0,
    .swiglu = SwiGlu,
    .exp = nullptr,
    .logit_stats = nullptr,
    .logit_weights = nullptr,
    .select = nullptr,
};

}  // namespace kvrm
