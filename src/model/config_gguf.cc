// SPDX-License-Identifier: Apache-2.0
// ModelConfig from GGUF metadata.
#include <bit>
#include <cmath>
#include <cstring>

#include "model/config.h"
#include "model/config_checks.h"
#include "model/gguf.h"
#include "model/quoted.h"

namespace kvrm {
namespace {

// Reads keys under "ARCHITECTURE."; remembers the first error and answers with defaults after it.
class GgufFields {
 public:
  GgufFields(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  bool Has(std::string_view key) const { return file_.Has(prefix_ + std::string(key)); }

  // An integer in [min, max], also when stored as an array of equal numbers, one a layer. When
  // absent: `absent`, or an error where there is none.
  std::uint32_t Uint(std::string_view key, std::uint64_t min, std::uint64_t max,
                     std::optional<std::uint32_t> absent = std::nullopt) {
    const std::string full = prefix_ + std::string(key);
    if (absent && !file_.Has(full)) return *absent;
    Result<std::uint64_t> value = Scalar(full);
    if (!value) return static_cast<std::uint32_t>(Keep(value.error()));
    if (*value < min || *value > max) {
      return static_cast<std::uint32_t>(
          Keep({ErrorCode::kInvalidArgument, Where(full) + " is " + std::to_string(*value) +
                                                 "; the limits are " + std::to_string(min) +
                                                 " and " + std::to_string(max)}));
    }
    return static_cast<std::uint32_t>(*value);
  }

  // A finite float above zero and at most `max`.
  float Positive(std::string_view key, double max, std::optional<float> absent = std::nullopt) {
    const std::string full = prefix_ + std::string(key);
    if (absent && !file_.Has(full)) return *absent;
    Result<double> value = file_.GetFloat(full);
    if (!value) return static_cast<float>(Keep(value.error()));
    const auto narrow = static_cast<float>(*value);
    if (!std::isfinite(*value) || *value > max || narrow <= 0.0f) {
      return static_cast<float>(
          Keep({ErrorCode::kInvalidArgument, Where(full) + " is " + NumberText(*value) +
                                                 "; it must be finite and above 0, at most " +
                                                 NumberText(max)}));
    }
    return narrow;
  }

  // The key's number whatever its kind, for switches that must stay off; nullopt: absent.
  std::optional<double> AnyNumber(std::string_view key) {
    const std::string full = prefix_ + std::string(key);
    if (!file_.Has(full)) return std::nullopt;
    if (Result<bool> value = file_.GetBool(full)) return *value ? 1.0 : 0.0;
    if (Result<double> value = file_.GetFloat(full)) return *value;
    Result<std::uint64_t> value = Scalar(full);
    if (!value) return Keep(value.error());
    return static_cast<double>(*value);
  }

  std::string Text(std::string_view key, std::string_view absent) {
    const std::string full = prefix_ + std::string(key);
    if (!file_.Has(full)) return std::string(absent);
    Result<std::string_view> value = file_.GetString(full);
    if (!value) Keep(value.error());
    return value ? std::string(*value) : std::string(absent);
  }

  void Refuse(std::string_view key, const std::string& what) {
    Keep({ErrorCode::kUnsupported,
          Where(prefix_ + std::string(key)) + ": " + what + " is not supported"});
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::string Where(const std::string& key) const { return file_.name() + ": " + key; }

  double Keep(Error error) {
    if (!error_) error_ = std::move(error);
    return 0.0;
  }

  Result<std::uint64_t> Scalar(const std::string& key) const {
    Result<std::vector<std::int64_t>> many = file_.GetInts(key);
    if (!many) return file_.GetUint(key);
    for (const std::int64_t value : *many) {
      if (value != many->front() || value < 0) {
        return Error{ErrorCode::kUnsupported,
                     Where(key) + " differs from layer to layer, which is not supported"};
      }
    }
    if (many->empty()) return Error{ErrorCode::kInvalidArgument, Where(key) + " is empty"};
    return static_cast<std::uint64_t>(many->front());
  }

  const GgufFile& file_;
  const std::string prefix_;
  std::optional<Error> error_;
};

std::optional<Architecture> ArchitectureOf(std::string_view name) {
  if (name == "llama") return Architecture::kLlama;
  if (name == "qwen2") return Architecture::kQwen2;
  if (name == "qwen3") return Architecture::kQwen3;
  return std::nullopt;
}

// Keys that ask for arithmetic we do not have, unless they hold the value that means "off".
void RefuseSwitches(GgufFields& fields) {
  struct Switch {
    const char* key;
    double off;
    const char* what;
  };
  static constexpr Switch kSwitches[] = {
      {"expert_count", 0, "a mixture of experts"},
      {"expert_used_count", 0, "a mixture of experts"},
      {"attn_logit_softcapping", 0, "soft-capping of attention"},
      {"final_logit_softcapping", 0, "soft-capping of logits"},
      {"attention.max_alibi_bias", 0, "ALiBi"},
      {"attention.clamp_kqv", 0, "clamping of q, k and v"},
      {"attention.causal", 1, "attention that is not causal"},
      {"attention.scale", 0, "another scale of attention"},
      {"attention.temperature_scale", 0, "a temperature of attention"},
      {"attention.temperature_length", 0, "a temperature of attention"},
      {"use_parallel_residual", 0, "a parallel residual"},
      {"logit_scale", 0, "a scale of logits"},
      {"embedding_scale", 0, "a scale of embeddings"},
      {"residual_scale", 0, "a scale of residuals"},
      {"nextn_predict_layers", 0, "multi-token prediction"},
      {"rope.scaling.attn_factor", 1, "a rope attention factor"},
      {"rope.scaling.yarn_log_multiplier", 0, "yarn rope scaling"},
  };
  for (const Switch& s : kSwitches) {
    const std::optional<double> value = fields.AnyNumber(s.key);
    if (value && *value != s.off) fields.Refuse(s.key, s.what);
  }
  static constexpr std::pair<const char*, const char*> kPresent[] = {
      {"attention.sliding_window_pattern", "a sliding window in some layers only"},
      {"rope.dimension_sections", "multi-section rope"},
      {"attention.q_lora_rank", "multi-head latent attention"},
      {"attention.kv_lora_rank", "multi-head latent attention"},
  };
  for (const auto& [key, what] : kPresent) {
    if (fields.Has(key)) fields.Refuse(key, what);
  }
}

// Frequency factors from rope_freqs.weight and linear scaling together.
Status ReadRope(const GgufFile& file, GgufFields& fields, ModelConfig* config) {
  const std::string type = fields.Text("rope.scaling.type", "");
  float linear = 1.0f;
  if (type == "linear") {
    linear = fields.Positive("rope.scaling.factor", 1e6, 1.0f);
  } else if (!type.empty() && type != "none") {
    fields.Refuse("rope.scaling.type", "rope scaling " + Quoted(type));
  } else if (type.empty()) {
    // The spelling from before rope.scaling.
    linear = fields.Positive("rope.scale_linear", 1e6, 1.0f);
  }
  if (fields.error()) return *fields.error();
  std::vector<float> factors(config->rope_dim / 2, linear);
  if (const GgufTensor* tensor = file.FindTensor("rope_freqs.weight")) {
    if (tensor->type != DType::kF32 || tensor->data.size() != factors.size() * sizeof(float)) {
      return Error{ErrorCode::kInvalidArgument, file.name() +
                                                    ": tensor 'rope_freqs.weight' is not F32 [" +
                                                    std::to_string(factors.size()) + "]"};
    }
    for (std::size_t i = 0; i < factors.size(); ++i) {
      float factor = 0.0f;
      std::memcpy(&factor, tensor->data.data() + i * sizeof(float), sizeof(float));
      factors[i] *= factor;
    }
  }
  return SetRopeFactors(file.name(), std::move(factors), config);
}

// Files that are GGUF but no whole model.
Status CheckFileKind(const GgufFile& file) {
  const auto refuse = [&file](const std::string& what) {
    return Error{ErrorCode::kUnsupported, file.name() + ": " + what};
  };
  Result<std::string_view> type = file.GetString("general.type");
  if (!type && type.error().code != ErrorCode::kNotFound) return type.error();
  if (type && *type != "model") {
    return refuse("this file holds a thing of type " + Quoted(*type) + ", not a model");
  }
  Result<std::uint64_t> parts = file.GetUint("split.count");
  if (!parts && parts.error().code != ErrorCode::kNotFound) return parts.error();
  if (parts && *parts > 1) {
    return refuse("this file is one of " + std::to_string(*parts) +
                  " parts of a split model, which is not supported; merge them first");
  }
  return Done{};
}

}  // namespace

Result<ModelConfig> ConfigFromGguf(const GgufFile& file) {
  if (const Status kind = CheckFileKind(file); !kind) return kind.error();
  Result<std::string_view> name = file.GetString("general.architecture");
  if (!name) return name.error();
  const std::optional<Architecture> architecture = ArchitectureOf(*name);
  if (!architecture) return UnsupportedArchitecture(file.name(), *name);

  ModelConfig config;
  config.architecture = *architecture;
  if (Result<std::string_view> title = file.GetString("general.name")) config.name = *title;
  GgufFields fields(file, *name);
  RefuseSwitches(fields);
  config.num_layers = fields.Uint("block_count", 1, kMaxLayers);
  config.hidden_dim = fields.Uint("embedding_length", 1, kMaxHiddenDim);
  config.ffn_dim = fields.Uint("feed_forward_length", 1, kMaxFfnDim);
  config.num_heads = fields.Uint("attention.head_count", 1, kMaxHeads);
  config.num_kv_heads = fields.Uint("attention.head_count_kv", 1, kMaxHeads, 0u);
  config.head_dim = fields.Uint("attention.key_length", kMinHeadDim, kMaxHeadDim, 0u);
  const std::uint32_t value_dim =
      fields.Uint("attention.value_length", kMinHeadDim, kMaxHeadDim, 0u);
  config.max_context = fields.Uint("context_length", 1, kMaxContextTokens);
  config.sliding_window = fields.Uint("attention.sliding_window", 0, kMaxContextTokens, 0u);
  config.rms_eps = fields.Positive("attention.layer_norm_rms_epsilon", kMaxRmsEps);
  config.rope_dim = fields.Uint("rope.dimension_count", 2, kMaxHeadDim, 0u);
  config.rope_base = fields.Positive("rope.freq_base", kMaxRopeBase, 10000.0f);
  // Only its range: some files were given more tokens later and keep the old number here.
  fields.Uint("vocab_size", 1, kMaxVocab, 1u);
  config.rope_halves = *architecture != Architecture::kLlama;
  config.qk_norm = *architecture == Architecture::kQwen3;
  if (fields.error()) return *fields.error();
  if (const Status done = FinishConfig(file.name(), &config); !done) return done.error();
  if (value_dim != 0 && value_dim != config.head_dim) {
    fields.Refuse("attention.value_length", "a value length other than the key length");
  }
  if (const Status done = ReadRope(file, fields, &config); !done) return done.error();
  return config;
}

}  // namespace kvrm
