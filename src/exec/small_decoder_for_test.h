// SPDX-License-Identifier: Apache-2.0
// A decoder of random weights, made from a seed, for tests and benchmarks of executors.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/rng.h"
#include "model/config.h"
#include "model/graph.h"
#include "model/weights.h"
#include "step/layout.h"

namespace kvrm {

// Four layers, so that both layer buffers are used twice; 4 query heads over 2 kv heads of 16.
inline ModelConfig SmallDecoderConfig() {
  ModelConfig config;
  config.num_layers = 4;
  config.hidden_dim = 32;
  config.ffn_dim = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 32;
  config.max_context = 4096;
  config.rope_dim = 16;
  return config;
}

class SmallDecoder {
 public:
  explicit SmallDecoder(const ModelConfig& config) : config_(config), rng_(17, "small decoder") {
    const std::uint32_t hidden = config.hidden_dim;
    const std::uint32_t q = config.num_heads * config.head_dim;
    const std::uint32_t kv = config.num_kv_heads * config.head_dim;
    weights_.embedding = Matrix(config.vocab_size, hidden);
    weights_.output_norm = Norm(hidden);
    weights_.output = Matrix(config.vocab_size, hidden);
    for (std::uint32_t l = 0; l < config.num_layers; ++l) {
      LayerWeights layer;
      layer.attention_norm = Norm(hidden);
      layer.q = Matrix(q, hidden);
      layer.k = Matrix(kv, hidden);
      layer.v = Matrix(kv, hidden);
      layer.output = Matrix(hidden, q);
      layer.mlp_norm = Norm(hidden);
      layer.gate = Matrix(config.ffn_dim, hidden);
      layer.up = Matrix(config.ffn_dim, hidden);
      layer.down = Matrix(hidden, config.ffn_dim);
      weights_.layers.push_back(layer);
    }
  }
  SmallDecoder(const SmallDecoder&) = delete;
  SmallDecoder& operator=(const SmallDecoder&) = delete;

  const ModelConfig& config() const { return config_; }
  Graph graph() const { return BuildDecoder(config_, weights_); }
  KvLayout layout(std::uint32_t block_tokens, DType dtype) const {
    return {.num_layers = config_.num_layers,
            .num_kv_heads = config_.num_kv_heads,
            .head_dim = config_.head_dim,
            .block_tokens = block_tokens,
            .dtype = dtype};
  }

 private:
  WeightTensor Tensor(std::uint32_t rows, std::uint32_t cols) {
    const std::vector<float>& values = storage_.back();
    return {
        .data = std::as_bytes(std::span(values)), .type = DType::kF32, .rows = rows, .cols = cols};
  }
  // Uniform, of a variance that keeps the scale of what it multiplies.
  WeightTensor Matrix(std::uint32_t rows, std::uint32_t cols) {
    std::vector<float>& values = storage_.emplace_back(std::size_t{rows} * cols);
    const double width = 2 * std::sqrt(3.0 / cols);
    for (float& value : values)
      value = static_cast<float>((rng_.Uniform() - 0.5) * width);
    return Tensor(rows, cols);
  }
  WeightTensor Norm(std::uint32_t width) {
    storage_.emplace_back(width, 1.0f);
    return Tensor(1, width);
  }

  const ModelConfig config_;
  Rng rng_;
  std::deque<std::vector<float>> storage_;
  ModelWeights weights_;
};

}  // namespace kvrm
