// SPDX-License-Identifier: Apache-2.0
#include "model/bind_weights.h"

#include <algorithm>
#include <cstring>

#include "base/float16.h"
#include "model/config_checks.h"
#include "model/quoted.h"

namespace kvrm {
namespace {

// How one kind of file calls the tensors. Layer tensors are called PREFIX, layer, ".", name.
struct Names {
  const char* embedding;
  const char* output_norm;
  const char* output;
  const char* layer_prefix;
  const char* attention_norm;
  const char* q;
  const char* k;
  const char* v;
  const char* q_bias;
  const char* k_bias;
  const char* v_bias;
  const char* q_norm;
  const char* k_norm;
  const char* attention_output;
  const char* mlp_norm;
  const char* gate;
  const char* up;
  const char* down;
};

constexpr Names kGgufNames = {.embedding = "token_embd.weight",
                              .output_norm = "output_norm.weight",
                              .output = "output.weight",
                              .layer_prefix = "blk.",
                              .attention_norm = "attn_norm.weight",
                              .q = "attn_q.weight",
                              .k = "attn_k.weight",
                              .v = "attn_v.weight",
                              .q_bias = "attn_q.bias",
                              .k_bias = "attn_k.bias",
                              .v_bias = "attn_v.bias",
                              .q_norm = "attn_q_norm.weight",
                              .k_norm = "attn_k_norm.weight",
                              .attention_output = "attn_output.weight",
                              .mlp_norm = "ffn_norm.weight",
                              .gate = "ffn_gate.weight",
                              .up = "ffn_up.weight",
                              .down = "ffn_down.weight"};

// Without the "model." that most files put in front of all but lm_head.
constexpr Names kHuggingFaceNames = {.embedding = "embed_tokens.weight",
                                     .output_norm = "norm.weight",
                                     .output = "lm_head.weight",
                                     .layer_prefix = "layers.",
                                     .attention_norm = "input_layernorm.weight",
                                     .q = "self_attn.q_proj.weight",
                                     .k = "self_attn.k_proj.weight",
                                     .v = "self_attn.v_proj.weight",
                                     .q_bias = "self_attn.q_proj.bias",
                                     .k_bias = "self_attn.k_proj.bias",
                                     .v_bias = "self_attn.v_proj.bias",
                                     .q_norm = "self_attn.q_norm.weight",
                                     .k_norm = "self_attn.k_norm.weight",
                                     .attention_output = "self_attn.o_proj.weight",
                                     .mlp_norm = "post_attention_layernorm.weight",
                                     .gate = "mlp.gate_proj.weight",
                                     .up = "mlp.up_proj.weight",
                                     .down = "mlp.down_proj.weight"};

// The tensors every layer has: q, k, v, attention output, gate, up, down and two norms.
constexpr std::uint64_t kMinTensorsPerLayer = 9;

// Tables that other programs computed from the configuration and stored with the weights.
bool IsHarmless(std::string_view name) {
  return name == "rope_freqs.weight" || name.ends_with("rotary_emb.inv_freq") ||
         (name.starts_with("blk.") && name.ends_with(".attn_rot_embd.weight"));
}

class Binder {
 public:
  Binder(const std::string& name, std::vector<StoredTensor> tensors, TensorNaming naming,
         ModelConfig* config);

  Result<BoundWeights> Bind();

 private:
  void BindOuter();
  LayerWeights BindLayer(std::uint32_t layer);
  void BindAttention(const std::string& prefix, LayerWeights* out);
  void BindEmbedding();
  void BindOutput();
  void RefuseTheRest();

  StoredTensor* Find(std::string_view tensor_name);
  // A tensor of [rows, cols]; rows 0: whatever there is. Counted once, however often it is taken.
  StoredTensor* Take(const std::string& tensor_name, std::uint64_t rows, std::uint64_t cols);
  WeightTensor Matrix(const std::string& tensor_name, std::uint64_t rows, std::uint64_t cols);
  WeightTensor Vector(const std::string& tensor_name, std::uint64_t cols);
  std::string Outer(const char* tensor_name) const { return prefix_ + tensor_name; }
  void Refuse(const std::string& what, ErrorCode code = ErrorCode::kInvalidArgument) {
    if (!error_) error_ = Error{code, name_ + ": " + what};
  }

  const std::string& name_;
  std::vector<StoredTensor> tensors_;  // sorted by name
  const Names& names_;
  const TensorNaming naming_;
  ModelConfig& config_;
  std::string prefix_;
  BoundWeights bound_;
  std::optional<Error> error_;
};

Binder::Binder(const std::string& name, std::vector<StoredTensor> tensors, TensorNaming naming,
               ModelConfig* config)
    : name_(name),
      tensors_(std::move(tensors)),
      names_(naming == TensorNaming::kGguf ? kGgufNames : kHuggingFaceNames),
      naming_(naming),
      config_(*config) {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  if (naming == TensorNaming::kHuggingFace &&
      Find(std::string("model.") + names_.output_norm) != nullptr) {
    prefix_ = "model.";
  }
}

Result<BoundWeights> Binder::Bind() {
  if (tensors_.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 name_ + ": there are no weights here, only a vocabulary or metadata"};
  }
  // Before anything is sized by the number of layers.
  if (tensors_.size() / kMinTensorsPerLayer < config_.num_layers) {
    return Error{ErrorCode::kInvalidArgument, name_ + ": " + std::to_string(tensors_.size()) +
                                                  " tensors are too few for " +
                                                  std::to_string(config_.num_layers) + " layers"};
  }
  BindOuter();
  bound_.weights.layers.reserve(config_.num_layers);
  for (std::uint32_t layer = 0; layer < config_.num_layers && !error_; ++layer)
    bound_.weights.layers.push_back(BindLayer(layer));
  if (!error_) RefuseTheRest();
  if (error_) return *error_;
  return std::move(bound_);
}

void Binder::BindOuter() {
  const std::string first = prefix_ + names_.layer_prefix + "0." + std::string(names_.q_bias);
  // Qwen 2 always has these biases; elsewhere the first layer decides for all.
  config_.qkv_bias = config_.architecture == Architecture::kQwen2 || Find(first) != nullptr;
  BindEmbedding();
  BindOutput();
  bound_.weights.output_norm = Vector(Outer(names_.output_norm), config_.hidden_dim);
}

void Binder::BindEmbedding() {
  std::string embedding = Outer(names_.embedding);
  // Of two shared tensors writers keep one, and not always the first.
  if (config_.tied_output && Find(embedding) == nullptr && Find(names_.output) != nullptr) {
    embedding = names_.output;
  }
  bound_.weights.embedding = Matrix(embedding, config_.vocab_size, config_.hidden_dim);
  if (error_) return;
  const std::uint32_t rows = bound_.weights.embedding.rows;
  if (rows < 1 || rows > kMaxVocab) {
    return Refuse("the embedding has " + std::to_string(rows) + " rows; the limits are 1 and " +
                  std::to_string(kMaxVocab));
  }
  config_.vocab_size = rows;
}

void Binder::BindOutput() {
  if (error_) return;
  // A GGUF file says that the output is tied by leaving it out, config.json by a field.
  if (naming_ == TensorNaming::kGguf) config_.tied_output = Find(names_.output) == nullptr;
  if (!config_.tied_output) {
    bound_.weights.output = Matrix(names_.output, config_.vocab_size, config_.hidden_dim);
    return;
  }
  bound_.weights.output = bound_.weights.embedding;
  // A stored copy of what is tied is not read.
  if (StoredTensor* copy = Find(names_.output)) copy->taken = true;
}

LayerWeights Binder::BindLayer(std::uint32_t layer) {
  const std::string prefix = prefix_ + names_.layer_prefix + std::to_string(layer) + ".";
  LayerWeights out;
  out.attention_norm = Vector(prefix + names_.attention_norm, config_.hidden_dim);
  BindAttention(prefix, &out);
  out.mlp_norm = Vector(prefix + names_.mlp_norm, config_.hidden_dim);
  out.gate = Matrix(prefix + names_.gate, config_.ffn_dim, config_.hidden_dim);
  out.up = Matrix(prefix + names_.up, config_.ffn_dim, config_.hidden_dim);
  out.down = Matrix(prefix + names_.down, config_.hidden_dim, config_.ffn_dim);
  return out;
}

void Binder::BindAttention(const std::string& prefix, LayerWeights* out) {
  const std::uint64_t q_width = std::uint64_t{config_.num_heads} * config_.head_dim;
  const std::uint64_t kv_width = std::uint64_t{config_.num_kv_heads} * config_.head_dim;
  out->q = Matrix(prefix + names_.q, q_width, config_.hidden_dim);
  out->k = Matrix(prefix + names_.k, kv_width, config_.hidden_dim);
  out->v = Matrix(prefix + names_.v, kv_width, config_.hidden_dim);
  out->output = Matrix(prefix + names_.attention_output, config_.hidden_dim, q_width);
  if (config_.qkv_bias) {
    out->q_bias = Vector(prefix + names_.q_bias, q_width);
    out->k_bias = Vector(prefix + names_.k_bias, kv_width);
    out->v_bias = Vector(prefix + names_.v_bias, kv_width);
  }
  if (config_.qk_norm) {
    out->q_norm = Vector(prefix + names_.q_norm, config_.head_dim);
    out->k_norm = Vector(prefix + names_.k_norm, config_.head_dim);
  }
}

void Binder::RefuseTheRest() {
  for (const StoredTensor& tensor : tensors_) {
    if (tensor.taken || IsHarmless(tensor.name)) continue;
    return Refuse("tensor " + Quoted(tensor.name) + " is no part of a " +
                      ArchitectureName(config_.architecture) + " model of " +
                      std::to_string(config_.num_layers) +
                      " layers as we know it; a variant of the architecture is not supported",
                  ErrorCode::kUnsupported);
  }
}

StoredTensor* Binder::Find(std::string_view tensor_name) {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), tensor_name,
                       [](const StoredTensor& t, std::string_view n) { return t.name < n; });
  return found == tensors_.end() || found->name != tensor_name ? nullptr : &*found;
}

StoredTensor* Binder::Take(const std::string& tensor_name, std::uint64_t rows, std::uint64_t cols) {
  if (error_) return nullptr;
  StoredTensor* tensor = Find(tensor_name);
  if (tensor == nullptr) {
    Refuse("tensor " + Quoted(tensor_name) + " is missing");
    return nullptr;
  }
  const std::string who = "tensor " + Quoted(tensor_name);
  if (!tensor->type) {
    Refuse(who + " is of type " + Quoted(tensor->type_name) +
               ", which is not supported; supported: F32, F16, BF16",
           ErrorCode::kUnsupported);
    return nullptr;
  }
  if (!tensor->is_matrix_or_vector || tensor->cols != cols ||
      (rows == 0 ? tensor->rows > kMaxVocab : tensor->rows != rows)) {
    const std::string expected = rows == 0 ? "any" : std::to_string(rows);
    Refuse(who + " has " +
           (tensor->is_matrix_or_vector
                ? std::to_string(tensor->rows) + " rows of " + std::to_string(tensor->cols)
                : std::string("more than two dimensions")) +
           "; the configuration asks for " + expected + " rows of " + std::to_string(cols));
    return nullptr;
  }
  const std::uintptr_t unit = *tensor->type == DType::kF32 ? sizeof(float) : sizeof(std::uint16_t);
  if (reinterpret_cast<std::uintptr_t>(tensor->data.data()) % unit != 0) {
    Refuse(who + " is not aligned to its elements in the file, which is not supported",
           ErrorCode::kUnsupported);
    return nullptr;
  }
  if (!tensor->taken) {
    bound_.weight_bytes += tensor->data.size();
    bound_.num_parameters += tensor->rows * tensor->cols;
  }
  tensor->taken = true;
  return tensor;
}

WeightTensor Binder::Matrix(const std::string& tensor_name, std::uint64_t rows,
                            std::uint64_t cols) {
  const StoredTensor* tensor = Take(tensor_name, rows, cols);
  if (tensor == nullptr) return {};
  return {.data = tensor->data,
          .type = *tensor->type,
          .rows = static_cast<std::uint32_t>(tensor->rows),
          .cols = static_cast<std::uint32_t>(cols),
          .is_mapped = tensor->is_mapped};
}

WeightTensor Binder::Vector(const std::string& tensor_name, std::uint64_t cols) {
  const StoredTensor* tensor = Take(tensor_name, 1, cols);
  if (tensor == nullptr) return {};
  WeightTensor out = {.data = tensor->data,
                      .type = DType::kF32,
                      .rows = 1,
                      .cols = static_cast<std::uint32_t>(cols)};
  if (*tensor->type == DType::kF32) return out;
  if (*tensor->type != DType::kF16 && *tensor->type != DType::kBf16) {
    Refuse("tensor " + Quoted(tensor_name) + " is a norm or bias of type " +
               DTypeName(*tensor->type) + ", which is not supported; supported: F32, F16, BF16",
           ErrorCode::kUnsupported);
    return {};
  }
  std::vector<float>& floats = bound_.converted.emplace_back(cols);
  for (std::uint64_t i = 0; i < cols; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, tensor->data.data() + i * sizeof(bits), sizeof(bits));
    floats[i] = *tensor->type == DType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
  }
  out.data = std::as_bytes(std::span<const float>(floats));
  return out;
}

}  // namespace

Result<BoundWeights> BindWeights(const std::string& name, std::vector<StoredTensor> tensors,
                                 TensorNaming naming, ModelConfig* config) {
  return Binder(name, std::move(tensors), naming, config).Bind();
}

}  // namespace kvrm
