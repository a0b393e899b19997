// SPDX-License-Identifier: Apache-2.0
// Model: a validated model on disk, in one form whatever file it came from: configuration, weights
// by role, tokenizer, chat template, generation defaults.
//
// Load validates everything and allocates nothing that grows with the weights: tensors are views
// into memory-mapped files, in the file's own layout (row-major, outputs x inputs), aligned to
// their elements (4 bytes for F32, else 2). Packing them for an instruction set is the executor's
// work. The views live as long as the Model, wherever it is moved to.
//
// Threading: immutable after Load, safe to read from many threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/config.h"
#include "model/tokenizer.h"
#include "step/dtype.h"

namespace kvrm {

// A matrix [rows, cols] or a vector [1, cols]. Empty data: the model has no such weight.
struct WeightTensor {
  std::span<const std::byte> data;
  DType type = DType::kF32;
  std::uint32_t rows = 0;  // outputs
  std::uint32_t cols = 0;  // inputs
  // In a read-only mapping of a file: its pages may be given back, and come back when read.
  bool is_mapped = false;
  bool empty() const { return data.empty(); }
};

struct LayerWeights {
  WeightTensor attention_norm;  // f32 [1, hidden]; norms and biases are always f32 here
  WeightTensor q, k, v;         // [num_heads * head_dim, hidden], [num_kv_heads * head_dim, hidden]
  WeightTensor q_bias, k_bias, v_bias;  // f32 or empty
  WeightTensor q_norm, k_norm;          // f32 [1, head_dim] or empty
  WeightTensor output;                  // [hidden, num_heads * head_dim]
  WeightTensor mlp_norm;
  WeightTensor gate, up, down;  // [ffn, hidden], [ffn, hidden], [hidden, ffn]
};

struct ModelWeights {
  WeightTensor embedding;    // [vocab, hidden]
  WeightTensor output_norm;  // f32 [1, hidden]
  WeightTensor output;       // [vocab, hidden]; the embedding itself when tied
  std::vector<LayerWeights> layers;
};

// Sampling defaults the model ships (generation_config.json); absent: OpenAI's.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<std::int32_t> top_k;
};

class Model {
 public:
  // A GGUF file, or a Hugging Face folder (config.json, tokenizer.json, *.safetensors).
  // Errors name the file, the field and the limit.
  static Result<Model> Load(const std::string& path);
  // The demo model inside the program.
  static Result<Model> LoadDemo();
  // A GGUF image in memory that outlives the model; `is_mapped` as in WeightTensor.
  static Result<Model> FromGgufBytes(std::span<const std::byte> bytes, const std::string& name,
                                     bool is_mapped = false);

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelConfig& config() const;
  const ModelWeights& weights() const;
  const Tokenizer& tokenizer() const;
  const GenerationDefaults& generation_defaults() const;
  std::string_view chat_template() const;  // empty: none
  // Bytes of all weights as stored, shared ones once.
  std::uint64_t weight_bytes() const;
  std::uint64_t num_parameters() const;

 private:
  struct Parts;
  explicit Model(std::unique_ptr<Parts> parts);
  static Result<Model> FromGgufFile(GgufFile gguf);
  static Result<Model> FromFolder(const std::string& folder);
  static Status ReadTextParts(const std::string& folder, Parts* parts);

  std::unique_ptr<Parts> parts_;
};

// The GGUF image of the demo model, for those who look at files.
std::span<const std::byte> DemoModelBytes();

}  // namespace kvrm
