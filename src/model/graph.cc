// SPDX-License-Identifier: Apache-2.0
#include "model/graph.h"

#include <utility>

#include "base/check.h"

namespace kvrm {

std::uint64_t Graph::weight_bytes_per_step() const {
  std::uint64_t bytes = 0;
  for (const Op& op : ops) {
    if (op.weight != nullptr && op.kind != OpKind::kEmbed) bytes += op.weight->data.size();
  }
  return bytes;
}

std::uint64_t Graph::macs_per_token() const {
  std::uint64_t macs = 0;
  for (const Op& op : ops) {
    if (op.kind != OpKind::kMatMul || op.out.buffer == logits.buffer) continue;
    macs += std::uint64_t{op.weight->rows} * op.weight->cols;
  }
  return macs;
}

Slice GraphBuilder::AddBuffer(const char* name, std::uint32_t width, bool per_sample) {
  const BufferId id{static_cast<std::uint32_t>(graph_.buffers.size())};
  graph_.buffers.push_back({.name = name, .width = width, .per_sample = per_sample});
  return {.buffer = id, .begin = 0, .width = width};
}

Slice GraphBuilder::TokenBuffer(const char* name, std::uint32_t width) {
  return AddBuffer(name, width, false);
}

Slice GraphBuilder::SampleBuffer(const char* name, std::uint32_t width) {
  return AddBuffer(name, width, true);
}

Slice GraphBuilder::Columns(Slice slice, std::uint32_t begin, std::uint32_t width) {
  CHECK(begin + width <= slice.width);
  return {.buffer = slice.buffer, .begin = slice.begin + begin, .width = width};
}

void GraphBuilder::Embed(Slice out, const WeightTensor& table) {
  CHECK(table.cols == out.width);
  graph_.ops.push_back({.kind = OpKind::kEmbed, .out = out, .weight = &table});
}

void GraphBuilder::Angles(Slice out) {
  CHECK(out.width == graph_.config.rope_dim);
  graph_.ops.push_back({.kind = OpKind::kAngles, .out = out});
}

void GraphBuilder::RmsNorm(Slice out, Slice in, const WeightTensor& weight) {
  CHECK(in.width == out.width && weight.cols == in.width);
  graph_.ops.push_back({.kind = OpKind::kRmsNorm, .out = out, .in = in, .weight = &weight});
}

void GraphBuilder::MatMul(Slice out, Slice in, const WeightTensor& weight,
                          const WeightTensor& bias) {
  CHECK(weight.cols == in.width && weight.rows == out.width);
  CHECK(bias.empty() || bias.cols == out.width);
  graph_.ops.push_back({.kind = OpKind::kMatMul,
                        .out = out,
                        .in = in,
                        .weight = &weight,
                        .bias = bias.empty() ? nullptr : &bias});
}

void GraphBuilder::MatMul(Slice out, Slice in, const WeightTensor& weight) {
  MatMul(out, in, weight, WeightTensor{});
}

void GraphBuilder::MatMulAdd(Slice out, Slice in, const WeightTensor& weight) {
  MatMul(out, in, weight);
  graph_.ops.back().accumulate = true;
}

void GraphBuilder::HeadNorm(Slice heads, const WeightTensor& weight) {
  CHECK(weight.cols == graph_.config.head_dim && heads.width % weight.cols == 0);
  graph_.ops.push_back({.kind = OpKind::kHeadNorm,
                        .num_heads = heads.width / weight.cols,
                        .out = heads,
                        .in = heads,
                        .weight = &weight});
}

void GraphBuilder::Rope(Slice heads, Slice angles) {
  graph_.ops.push_back({.kind = OpKind::kRope,
                        .num_heads = heads.width / graph_.config.head_dim,
                        .out = heads,
                        .in = heads,
                        .in2 = angles});
}

void GraphBuilder::StoreKv(std::uint32_t layer, Slice k, Slice v) {
  CHECK(k.width == graph_.config.num_kv_heads * graph_.config.head_dim && v.width == k.width);
  graph_.ops.push_back({.kind = OpKind::kStoreKv, .layer = layer, .in = k, .in2 = v});
}

void GraphBuilder::Attention(std::uint32_t layer, Slice out, Slice q) {
  CHECK(q.width == graph_.config.num_heads * graph_.config.head_dim && out.width == q.width);
  graph_.ops.push_back({.kind = OpKind::kAttention, .layer = layer, .out = out, .in = q});
}

void GraphBuilder::SwiGlu(Slice out, Slice gate, Slice up) {
  CHECK(gate.width == up.width && out.width == up.width);
  graph_.ops.push_back({.kind = OpKind::kSwiGlu, .out = out, .in = gate, .in2 = up});
}

void GraphBuilder::Gather(Slice out, Slice in) {
  CHECK(in.width == out.width);
  graph_.ops.push_back({.kind = OpKind::kGather, .out = out, .in = in});
}

Graph GraphBuilder::Finish(Slice hidden, Slice logits) {
  graph_.hidden = hidden;
  graph_.logits = logits;
  return std::move(graph_);
}

}  // namespace kvrm
