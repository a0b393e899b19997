// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a whole GGUF model. What is accepted has every weight in the shape
// the configuration says. Starts from a small right model; run with -max_len=16384.
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "model/small_model.h"
#include "model/weights.h"

namespace {

void CheckShape(const kvrm::WeightTensor& tensor, std::uint64_t rows, std::uint64_t cols) {
  CHECK(tensor.rows == rows && tensor.cols == cols);
  CHECK(tensor.data.size() ==
        rows * (cols / kvrm::DTypeBlockElements(tensor.type)) * kvrm::DTypeBlockBytes(tensor.type));
}

void CheckModel(const kvrm::Model& model) {
  const kvrm::ModelConfig& c = model.config();
  const kvrm::ModelWeights& w = model.weights();
  const std::uint64_t q_width = std::uint64_t{c.num_heads} * c.head_dim;
  const std::uint64_t kv_width = std::uint64_t{c.num_kv_heads} * c.head_dim;
  CheckShape(w.embedding, c.vocab_size, c.hidden_dim);
  CheckShape(w.output, c.vocab_size, c.hidden_dim);
  CheckShape(w.output_norm, 1, c.hidden_dim);
  CHECK(w.layers.size() == c.num_layers);
  for (const kvrm::LayerWeights& layer : w.layers) {
    CheckShape(layer.q, q_width, c.hidden_dim);
    CheckShape(layer.k, kv_width, c.hidden_dim);
    CheckShape(layer.v, kv_width, c.hidden_dim);
    CheckShape(layer.output, c.hidden_dim, q_width);
    CheckShape(layer.gate, c.ffn_dim, c.hidden_dim);
    CheckShape(layer.up, c.ffn_dim, c.hidden_dim);
    CheckShape(layer.down, c.hidden_dim, c.ffn_dim);
    CHECK(layer.q_bias.empty() != c.qkv_bias);
    CHECK(layer.q_norm.empty() != c.qk_norm);
  }
  CHECK(model.tokenizer().num_tokens() <= c.vocab_size);
}

}  // namespace

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max, unsigned int) {
  static const std::string whole = kvrm::SmallLlama().Build();
  if (size < 32 && whole.size() <= max) {
    std::memcpy(data, whole.data(), whole.size());
    size = whole.size();
  }
  return LLVMFuzzerMutate(data, size, max);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const kvrm::Result<kvrm::Model> model = kvrm::Model::FromGgufBytes(bytes, "fuzz");
  if (model) {
    CheckModel(*model);
  } else {
    CHECK(!model.error().message.empty());
    CHECK(model.error().message.find('\n') == std::string::npos);
  }
  return 0;
}
