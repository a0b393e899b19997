// SPDX-License-Identifier: Apache-2.0
// ModelConfig: the hyper-parameters of a decoder, checked; one struct whatever file they came from.
//
// Every field is within the limits stated beside it before anything is sized by it (F3). What a
// file asks for beyond these fields (experts, soft-capping, other rope scalings, ...) is refused by
// name, never ignored.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvrm {

class GgufFile;

enum class Architecture : std::uint8_t { kLlama, kMistral, kQwen2, kQwen3 };

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string name;                  // For people; from the file, else from its name.
  std::uint32_t num_layers = 0;      // 1..1,024
  std::uint32_t hidden_dim = 0;      // 1..65,536
  std::uint32_t ffn_dim = 0;         // 1..1,048,576
  std::uint32_t num_heads = 0;       // 1..4,096
  std::uint32_t num_kv_heads = 0;    // divides num_heads
  std::uint32_t head_dim = 0;        // 2..512, even (small models have 8)
  std::uint32_t vocab_size = 0;      // 1..4 Mi
  std::uint32_t max_context = 0;     // tokens the model was trained for, 1..16 Mi
  std::uint32_t sliding_window = 0;  // attended tokens including the own one; 0: all
  float rms_eps = 1e-5f;             // finite, > 0
  bool rope_halves = false;          // pairs (i, i + dim / 2) instead of (2i, 2i + 1)
  std::uint32_t rope_dim = 0;        // even, <= head_dim
  float rope_base = 10000.0f;        // finite, > 0
  // Each frequency base^(-2i / rope_dim) is divided by its factor: empty or [rope_dim / 2]. Linear
  // scaling is a constant factor; Llama 3.1 scaling is expanded here from its four parameters or
  // from the tensor rope_freqs.weight.
  std::vector<float> rope_factors;
  bool tied_output = false;  // the output projection is the embedding
  bool qkv_bias = false;
  bool qk_norm = false;  // per-head RMS norm of q and k (Qwen3)
};

// "llama", "mistral", "qwen2", "qwen3". Never null.
const char* ArchitectureName(Architecture architecture);

// From GGUF metadata and the tensor rope_freqs.weight. What only the other tensors tell stays at
// its default: vocab_size (0), tied_output, qkv_bias; model/weights.h fills it in.
Result<ModelConfig> ConfigFromGguf(const GgufFile& file);

// From the content of a Hugging Face config.json; `name` stands in error messages. qkv_bias is left
// to the tensors, as above.
Result<ModelConfig> ConfigFromJson(std::string_view text, const std::string& name);

}  // namespace kvrm
