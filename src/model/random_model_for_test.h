// SPDX-License-Identifier: Apache-2.0
// A small whole model of random weights, for tests that run through real kernels many times.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "model/gguf_writer.h"
#include "model/random_blocks.h"
#include "step/dtype.h"

namespace kvrm {

// A llama model in Q8_0 as a GGUF image: 2 layers, hidden 64, 4 heads of 16 over 2, feed-forward
// 96, 96 tokens of which 2 ends a text. Matrices keep a vector's norm, so that attention is far
// from even and every position of a history shows in the logits.
class RandomModelImage {
 public:
  RandomModelImage() { image_ = Build(); }
  // As long as this object lives.
  std::span<const std::byte> bytes() const { return AsBytes(image_); }

 private:
  static constexpr std::uint32_t kHidden = 64;
  static constexpr std::uint32_t kHeads = 4;
  static constexpr std::uint32_t kKvHeads = 2;
  static constexpr std::uint32_t kHeadDim = 16;
  static constexpr std::uint32_t kFfn = 96;
  static constexpr std::uint32_t kLayers = 2;
  static constexpr std::uint32_t kVocab = 96;

  void AddVocabulary() {
    std::vector<std::string> words = {"<unk>", "<s>", "</s>"};
    std::vector<std::int32_t> types = {2, 3, 3};
    while (words.size() < kVocab) {
      words.push_back("w" + std::to_string(words.size()));
      types.push_back(1);
    }
    writer_.AddString("tokenizer.ggml.model", "llama");
    writer_.AddStrings("tokenizer.ggml.tokens", words);
    writer_.AddArray("tokenizer.ggml.scores", GgufType::kFloat32, std::vector<float>(kVocab));
    writer_.AddArray("tokenizer.ggml.token_type", GgufType::kInt32, types);
    writer_.AddUint("tokenizer.ggml.bos_token_id", 1);
    writer_.AddUint("tokenizer.ggml.eos_token_id", 2);
    writer_.AddUint("tokenizer.ggml.unknown_token_id", 0);
  }

  void AddMatrix(const std::string& name, std::uint32_t rows, std::uint32_t cols, double gain) {
    constexpr std::uint32_t kQ8InFiles = 8;
    const std::size_t blocks = std::size_t{rows} * (cols / DTypeBlockElements(DType::kQ8_0));
    std::vector<std::byte> data(blocks * DTypeBlockBytes(DType::kQ8_0));
    FillRandomBlocks(DType::kQ8_0, gain / std::sqrt(cols), &rng_, data);
    writer_.tensors.push_back({name,
                               kQ8InFiles,
                               {cols, rows},
                               std::string(reinterpret_cast<const char*>(data.data()), data.size()),
                               0,
                               false});
  }

  void AddNorm(const std::string& name, float weight) {
    std::string data;
    for (std::uint32_t i = 0; i < kHidden; ++i)
      data += GgufWriter::Raw(weight);
    writer_.tensors.push_back({name, 0, {kHidden}, data, 0, false});
  }

  void AddLayer(const std::string& prefix) {
    AddNorm(prefix + "attn_norm.weight", 1.0f);
    AddMatrix(prefix + "attn_q.weight", kHeads * kHeadDim, kHidden, 1.0);
    AddMatrix(prefix + "attn_k.weight", kKvHeads * kHeadDim, kHidden, 1.0);
    AddMatrix(prefix + "attn_v.weight", kKvHeads * kHeadDim, kHidden, 1.0);
    AddMatrix(prefix + "attn_output.weight", kHidden, kHeads * kHeadDim, 1.0);
    AddNorm(prefix + "ffn_norm.weight", 1.0f);
    AddMatrix(prefix + "ffn_gate.weight", kFfn, kHidden, 1.0);
    AddMatrix(prefix + "ffn_up.weight", kFfn, kHidden, 1.0);
    AddMatrix(prefix + "ffn_down.weight", kHidden, kFfn, 1.0);
  }

  std::string Build() {
    writer_.AddString("general.architecture", "llama");
    writer_.AddString("general.name", "random");
    writer_.AddUint("llama.context_length", 512);
    writer_.AddUint("llama.embedding_length", kHidden);
    writer_.AddUint("llama.block_count", kLayers);
    writer_.AddUint("llama.feed_forward_length", kFfn);
    writer_.AddUint("llama.attention.head_count", kHeads);
    writer_.AddUint("llama.attention.head_count_kv", kKvHeads);
    writer_.AddFloat("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    writer_.AddUint("llama.rope.dimension_count", kHeadDim);
    writer_.AddFloat("llama.rope.freq_base", 10000.0f);
    AddVocabulary();
    AddMatrix("token_embd.weight", kVocab, kHidden, 8.0);
    AddNorm("output_norm.weight", 1.5f);
    AddMatrix("output.weight", kVocab, kHidden, 1.0);
    for (std::uint32_t layer = 0; layer < kLayers; ++layer)
      AddLayer("blk." + std::to_string(layer) + ".");
    return writer_.Build();
  }

  Rng rng_ = Rng(20261126, "random model");
  GgufWriter writer_;
  std::string image_;
};

}  // namespace kvrm
