// SPDX-License-Identifier: Apache-2.0
// Graph: the decoder's forward pass as data, built once, replayed by every executor.
//
// A graph is a list of operations on named buffers. A buffer has one row per token of the step, or
// one row per sampled row; how many rows there are is the descriptor's business, never the graph's.
// Operations refer to column ranges of buffers, so q, k and v can share one buffer.
//
// The builder's methods are the vocabulary of build_decoder.cc; nothing else makes a graph.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace kvrm {

enum class BufferId : std::uint32_t {};

struct Buffer {
  const char* name = "";
  std::uint32_t width = 0;  // floats per row
  bool per_sample = false;  // rows are sampled rows, else tokens
};

// Columns [begin, begin + width) of a buffer.
struct Slice {
  BufferId buffer{};
  std::uint32_t begin = 0;
  std::uint32_t width = 0;
};

enum class OpKind : std::uint8_t {
  kEmbed,      // out = weight[token id]
  kAngles,     // out = cos | sin of position * frequency, [rope_dim / 2] each
  kRmsNorm,    // out = norm(in) * weight
  kMatMul,     // out (+)= in weight^T + bias
  kHeadNorm,   // out = per-head norm of out * weight
  kRope,       // out rotated by in (the angles)
  kStoreKv,    // cache[layer][slot] = in (k), in2 (v)
  kAttention,  // out = softmax(in k^T) v over the row's history
  kSwiGlu,     // out = silu(in) * in2
  kGather,     // out[i] = in[sample_token[i]]
};

struct Op {
  OpKind kind{};
  bool accumulate = false;      // kMatMul
  std::uint32_t layer = 0;      // kStoreKv, kAttention
  std::uint32_t num_heads = 0;  // kHeadNorm, kRope
  Slice out{};
  Slice in{};
  Slice in2{};
  const WeightTensor* weight = nullptr;
  const WeightTensor* bias = nullptr;
};

struct Graph {
  ModelConfig config;
  std::vector<Buffer> buffers;
  std::vector<Op> ops;
  Slice hidden;  // per sample, [hidden_dim]: behind the last norm, what the logits are made of
  Slice logits;  // per sample, [vocab]

  // The speed of light: bytes of weights a step must read, whatever the number of rows, without the
  // embedding table, of which a step reads single rows.
  std::uint64_t weight_bytes_per_step() const;
  // Multiply-adds per token, without attention and the output projection.
  std::uint64_t macs_per_token() const;
};

class GraphBuilder {
 public:
  explicit GraphBuilder(const ModelConfig& config) { graph_.config = config; }

  Slice TokenBuffer(const char* name, std::uint32_t width);
  Slice SampleBuffer(const char* name, std::uint32_t width);
  // Columns of a slice.
  static Slice Columns(Slice slice, std::uint32_t begin, std::uint32_t width);

  void Embed(Slice out, const WeightTensor& table);
  void Angles(Slice out);
  void RmsNorm(Slice out, Slice in, const WeightTensor& weight);
  void MatMul(Slice out, Slice in, const WeightTensor& weight, const WeightTensor& bias);
  void MatMul(Slice out, Slice in, const WeightTensor& weight);
  void MatMulAdd(Slice out, Slice in, const WeightTensor& weight);
  void HeadNorm(Slice heads, const WeightTensor& weight);
  void Rope(Slice heads, Slice angles);
  void StoreKv(std::uint32_t layer, Slice k, Slice v);
  void Attention(std::uint32_t layer, Slice out, Slice q);
  void SwiGlu(Slice out, Slice gate, Slice up);
  void Gather(Slice out, Slice in);

  Graph Finish(Slice hidden, Slice logits);

 private:
  Slice AddBuffer(const char* name, std::uint32_t width, bool per_sample);
  Graph graph_;
};

// The decoder of every supported architecture. `weights` outlives the graph.
Graph BuildDecoder(const ModelConfig& config, const ModelWeights& weights);

}  // namespace kvrm
