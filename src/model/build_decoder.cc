// SPDX-License-Identifier: Apache-2.0
// The decoder, as the papers write it: Llama (Touvron et al. 2023) with grouped-query attention,
// Mistral's window, Qwen2's biases and Qwen3's head norms.
#include "model/graph.h"

namespace kvrm {

Graph BuildDecoder(const ModelConfig& config, const ModelWeights& weights) {
  GraphBuilder g(config);
  const std::uint32_t q_width = config.num_heads * config.head_dim;
  const std::uint32_t kv_width = config.num_kv_heads * config.head_dim;

  const Slice x = g.TokenBuffer("residual", config.hidden_dim);
  const Slice h = g.TokenBuffer("normed", config.hidden_dim);
  const Slice qkv = g.TokenBuffer("qkv", q_width + 2 * kv_width);
  const Slice q = g.Columns(qkv, 0, q_width);
  const Slice k = g.Columns(qkv, q_width, kv_width);
  const Slice v = g.Columns(qkv, q_width + kv_width, kv_width);
  const Slice a = g.TokenBuffer("attention", q_width);
  const Slice gate_up = g.TokenBuffer("gate_up", 2 * config.ffn_dim);
  const Slice gate = g.Columns(gate_up, 0, config.ffn_dim);
  const Slice up = g.Columns(gate_up, config.ffn_dim, config.ffn_dim);
  const Slice m = g.TokenBuffer("mlp", config.ffn_dim);
  const Slice angles = g.TokenBuffer("angles", config.rope_dim);
  const Slice last = g.SampleBuffer("last", config.hidden_dim);
  const Slice logits = g.SampleBuffer("logits", config.vocab_size);

  g.Angles(angles);
  g.Embed(x, weights.embedding);
  for (std::uint32_t l = 0; l < config.num_layers; ++l) {
    const LayerWeights& w = weights.layers[l];
    g.RmsNorm(h, x, w.attention_norm);  // h = norm(x)
    g.MatMul(q, h, w.q, w.q_bias);      // q, k, v = h W + b
    g.MatMul(k, h, w.k, w.k_bias);
    g.MatMul(v, h, w.v, w.v_bias);
    if (config.qk_norm) {
      g.HeadNorm(q, w.q_norm);
      g.HeadNorm(k, w.k_norm);
    }
    g.Rope(q, angles);
    g.Rope(k, angles);
    g.StoreKv(l, k, v);           // into this token's slot
    g.Attention(l, a, q);         // over the sequence's history
    g.MatMulAdd(x, a, w.output);  // x += a W
    g.RmsNorm(h, x, w.mlp_norm);
    g.MatMul(gate, h, w.gate);
    g.MatMul(up, h, w.up);
    g.SwiGlu(m, gate, up);      // m = silu(gate) * up
    g.MatMulAdd(x, m, w.down);  // x += m W
  }
  g.Gather(last, x);  // only the rows that sample
  g.RmsNorm(last, last, weights.output_norm);
  g.MatMul(logits, last, weights.output);
  return g.Finish(last, logits);
}

}  // namespace kvrm
