// SPDX-License-Identifier: Apache-2.0
// ModelConfig from a Hugging Face config.json.
#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>
#include <cmath>

#include "base/json.h"
#include "model/config.h"
#include "model/config_checks.h"
#include "model/quoted.h"

namespace kvrm {
namespace {

std::string_view View(const json::string& text) {
  return {text.data(), text.size()};
}

// Reads fields of one object; remembers the first error and answers with defaults after it. A null
// is an absent field.
class JsonFields {
 public:
  JsonFields(const json::object& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  const json::value* Find(std::string_view key) const {
    const json::value* value = object_.if_contains(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  // Written in the file, be it as null.
  bool Mentions(std::string_view key) const { return object_.contains(key); }

  std::uint32_t Uint(std::string_view key, std::uint64_t min, std::uint64_t max,
                     std::optional<std::uint32_t> absent = std::nullopt) {
    const json::value* value = Find(key);
    if (value == nullptr) {
      if (!absent) Invalid(key, "is missing");
      return absent.value_or(0);
    }
    std::uint64_t number = 0;
    if (value->is_int64() && value->get_int64() >= 0) {
      number = static_cast<std::uint64_t>(value->get_int64());
    } else if (value->is_uint64()) {
      number = value->get_uint64();
    } else {
      Invalid(key,
              "is not a whole number from " + std::to_string(min) + " to " + std::to_string(max));
      return 0;
    }
    if (number < min || number > max) {
      Invalid(key, "is " + std::to_string(number) + "; the limits are " + std::to_string(min) +
                       " and " + std::to_string(max));
      return 0;
    }
    return static_cast<std::uint32_t>(number);
  }

  // A finite number above zero and at most `max`.
  double Positive(std::string_view key, double max, std::optional<double> absent = std::nullopt) {
    const json::value* value = Find(key);
    if (value == nullptr) {
      if (!absent) Invalid(key, "is missing");
      return absent.value_or(0.0);
    }
    const std::optional<double> number = Number(*value);
    if (!number || !std::isfinite(*number) || static_cast<float>(*number) <= 0.0f ||
        *number > max) {
      Invalid(key, "is not a finite number above 0, at most " + NumberText(max));
      return 0.0;
    }
    return *number;
  }

  bool Bool(std::string_view key, bool absent) {
    const json::value* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_bool()) {
      Invalid(key, "is not true or false");
      return absent;
    }
    return value->get_bool();
  }

  std::string Text(std::string_view key, std::string_view absent) {
    const json::value* value = Find(key);
    if (value == nullptr) return std::string(absent);
    if (!value->is_string()) {
      Invalid(key, "is not a string");
      return std::string(absent);
    }
    return std::string(View(value->get_string()));
  }

  const json::object* Object(std::string_view key) {
    const json::value* value = Find(key);
    if (value != nullptr && !value->is_object()) Invalid(key, "is not an object");
    return value == nullptr ? nullptr : value->if_object();
  }

  static std::optional<double> Number(const json::value& value) {
    if (value.is_bool()) return value.get_bool() ? 1.0 : 0.0;
    if (value.is_int64()) return static_cast<double>(value.get_int64());
    if (value.is_uint64()) return static_cast<double>(value.get_uint64());
    if (value.is_double()) return value.get_double();
    return std::nullopt;
  }

  void Invalid(std::string_view key, const std::string& what) {
    Keep({ErrorCode::kInvalidArgument, where_ + ": " + std::string(key) + " " + what});
  }
  void Refuse(std::string_view key, const std::string& what) {
    Keep({ErrorCode::kUnsupported,
          where_ + ": " + std::string(key) + ": " + what + " is not supported"});
  }
  void Keep(Error error) {
    if (!error_) error_ = std::move(error);
  }
  const std::optional<Error>& error() const { return error_; }
  const std::string& where() const { return where_; }

 private:
  const json::object& object_;
  const std::string where_;
  std::optional<Error> error_;
};

// Fields that ask for arithmetic we do not have, unless they hold the value that means "off".
void RefuseSwitches(JsonFields& fields) {
  struct Switch {
    const char* key;
    double off;
    const char* what;
  };
  static constexpr Switch kSwitches[] = {
      {"num_local_experts", 0, "a mixture of experts"},
      {"num_experts", 0, "a mixture of experts"},
      {"n_routed_experts", 0, "a mixture of experts"},
      {"num_experts_per_tok", 0, "a mixture of experts"},
      {"attn_logit_softcapping", 0, "soft-capping of attention"},
      {"final_logit_softcapping", 0, "soft-capping of logits"},
      {"alibi", 0, "ALiBi"},
      {"clip_qkv", 0, "clamping of q, k and v"},
      {"parallel_attn", 0, "a parallel residual"},
      {"use_parallel_residual", 0, "a parallel residual"},
      {"logit_scale", 1, "a scale of logits"},
      {"logits_scaling", 1, "a scale of logits"},
      {"embedding_multiplier", 1, "a scale of embeddings"},
      {"residual_multiplier", 1, "a scale of residuals"},
      {"attention_multiplier", 1, "another scale of attention"},
      {"partial_rotary_factor", 1, "partial rotary embedding"},
      {"mlp_bias", 0, "a bias in the feed-forward layers"},
      {"use_qk_norm", 0, "a norm of q and k in this architecture"},
      {"is_encoder_decoder", 0, "an encoder"},
      {"add_cross_attention", 0, "cross attention"},
      {"use_bidirectional_attention", 0, "attention that is not causal"},
      {"no_rope_layer_interval", 0, "layers without rope"},
  };
  for (const Switch& s : kSwitches) {
    const json::value* value = fields.Find(s.key);
    if (value == nullptr) continue;
    const std::optional<double> number = JsonFields::Number(*value);
    if (!number || *number != s.off) fields.Refuse(s.key, s.what);
  }
  static constexpr std::pair<const char*, const char*> kPresent[] = {
      {"vision_config", "a vision model"},
      {"audio_config", "an audio model"},
      {"text_config", "a model of several kinds of input"},
      {"no_rope_layers", "layers without rope"},
      {"kv_lora_rank", "multi-head latent attention"},
  };
  for (const auto& [key, what] : kPresent) {
    if (fields.Find(key) != nullptr) fields.Refuse(key, what);
  }
  if (const json::object* quantization = fields.Object("quantization_config")) {
    JsonFields inner(*quantization, fields.where());
    fields.Refuse("quantization_config",
                  "quantization by " + Quoted(inner.Text("quant_method", "unknown")));
  }
  const std::string activation = fields.Text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.Refuse("hidden_act", "activation " + Quoted(activation));
  }
}

std::optional<Architecture> ArchitectureOf(std::string_view name) {
  if (name == "LlamaForCausalLM") return Architecture::kLlama;
  if (name == "MistralForCausalLM") return Architecture::kMistral;
  if (name == "Qwen2ForCausalLM") return Architecture::kQwen2;
  if (name == "Qwen3ForCausalLM") return Architecture::kQwen3;
  return std::nullopt;
}

Result<Architecture> ReadArchitecture(const JsonFields& fields) {
  const json::value* value = fields.Find("architectures");
  const json::array* names = value == nullptr ? nullptr : value->if_array();
  if (names == nullptr || names->size() != 1 || !names->front().is_string()) {
    return Error{ErrorCode::kInvalidArgument,
                 fields.where() + ": architectures is not a list of one name"};
  }
  const std::string_view name = View(names->front().get_string());
  const std::optional<Architecture> architecture = ArchitectureOf(name);
  if (!architecture) return UnsupportedArchitecture(fields.where(), name);
  return *architecture;
}

// layer_types, where newer files have it, must agree with one window for all layers.
void CheckLayerTypes(JsonFields& fields, bool windowed) {
  const json::value* value = fields.Find("layer_types");
  if (value == nullptr) return;
  const json::array* types = value->if_array();
  if (types == nullptr) return fields.Invalid("layer_types", "is not a list");
  const std::string_view expected = windowed ? "sliding_attention" : "full_attention";
  for (const json::value& type : *types) {
    if (!type.is_string()) return fields.Invalid("layer_types", "is not a list of names");
    if (View(type.get_string()) != expected) {
      return fields.Refuse("layer_types",
                           "a layer of type " + Quoted(View(type.get_string())) + " here");
    }
  }
}

std::uint32_t ReadSlidingWindow(JsonFields& fields, const ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::kLlama:
      return 0;
    case Architecture::kMistral:
      // Absent means the architecture's default of 4,096; null means none.
      return fields.Uint("sliding_window", 1, kMaxContextTokens,
                         fields.Mentions("sliding_window") ? 0u : 4096u);
    case Architecture::kQwen2:
    case Architecture::kQwen3:
      break;
  }
  if (!fields.Bool("use_sliding_window", false)) return 0;
  // Layers below max_window_layers attend to everything, the others to the window.
  const std::uint32_t full = fields.Uint("max_window_layers", 0, kMaxLayers, 28u);
  if (full >= config.num_layers) return 0;
  if (full > 0) fields.Refuse("max_window_layers", "a sliding window in some layers only");
  return fields.Uint("sliding_window", 1, kMaxContextTokens, 4096u);
}

// rope_theta and rope_scaling, or both together as rope_parameters.
Status ReadRope(JsonFields& fields, ModelConfig* config) {
  const json::object* parameters = fields.Object("rope_parameters");
  const json::object* scaling = parameters != nullptr ? parameters : fields.Object("rope_scaling");
  const double outer_base = fields.Positive("rope_theta", kMaxRopeBase, 10000.0);
  config->rope_base = static_cast<float>(outer_base);
  if (fields.error()) return *fields.error();
  if (scaling == nullptr) return Done{};

  JsonFields rope(*scaling, fields.where() + ": " +
                                (parameters != nullptr ? "rope_parameters" : "rope_scaling"));
  config->rope_base = static_cast<float>(rope.Positive("rope_theta", kMaxRopeBase, outer_base));
  const json::value* partial = rope.Find("partial_rotary_factor");
  if (partial != nullptr && JsonFields::Number(*partial) != 1.0) {
    rope.Refuse("partial_rotary_factor", "partial rotary embedding");
  }
  const std::string type = rope.Text("rope_type", rope.Text("type", "default"));
  std::vector<float> factors;
  if (type == "linear") {
    factors.assign(config->rope_dim / 2, static_cast<float>(rope.Positive("factor", 1e6)));
  } else if (type == "llama3") {
    const Llama3Scaling llama3 = {.factor = rope.Positive("factor", 1e6),
                                  .low_freq_factor = rope.Positive("low_freq_factor", 1e6),
                                  .high_freq_factor = rope.Positive("high_freq_factor", 1e6),
                                  .original_context = static_cast<double>(rope.Uint(
                                      "original_max_position_embeddings", 1, kMaxContextTokens))};
    if (llama3.high_freq_factor <= llama3.low_freq_factor) {
      rope.Invalid("high_freq_factor", "is not above low_freq_factor");
    }
    if (!rope.error()) {
      factors = Llama3RopeFactors(llama3, config->rope_dim, static_cast<double>(config->rope_base));
    }
  } else if (type != "default") {
    rope.Refuse("rope_type", "rope scaling " + Quoted(type));
  }
  if (rope.error()) return *rope.error();
  return SetRopeFactors(fields.where(), std::move(factors), config);
}

}  // namespace

Result<ModelConfig> ConfigFromJson(std::string_view text, const std::string& name) {
  Result<json::value> parsed =
      ParseJson(text, {.max_bytes = std::size_t{1} << 20, .max_depth = 32});
  if (!parsed) return Error{parsed.error().code, name + ": " + parsed.error().message};
  const json::object* object = parsed->if_object();
  if (object == nullptr) return Error{ErrorCode::kInvalidArgument, name + ": not a JSON object"};
  JsonFields fields(*object, name);
  Result<Architecture> architecture = ReadArchitecture(fields);
  if (!architecture) return architecture.error();

  ModelConfig config;
  config.architecture = *architecture;
  config.name = fields.Text("_name_or_path", "");
  RefuseSwitches(fields);
  config.num_layers = fields.Uint("num_hidden_layers", 1, kMaxLayers);
  config.hidden_dim = fields.Uint("hidden_size", 1, kMaxHiddenDim);
  config.ffn_dim = fields.Uint("intermediate_size", 1, kMaxFfnDim);
  config.num_heads = fields.Uint("num_attention_heads", 1, kMaxHeads);
  config.num_kv_heads = fields.Uint("num_key_value_heads", 1, kMaxHeads, 0u);
  config.head_dim = fields.Uint("head_dim", kMinHeadDim, kMaxHeadDim,
                                *architecture == Architecture::kQwen3 ? 128u : 0u);
  config.vocab_size = fields.Uint("vocab_size", 1, kMaxVocab);
  config.max_context = fields.Uint("max_position_embeddings", 1, kMaxContextTokens);
  config.rms_eps = static_cast<float>(fields.Positive("rms_norm_eps", kMaxRmsEps, 1e-6));
  config.tied_output = fields.Bool("tie_word_embeddings", false);
  config.sliding_window = ReadSlidingWindow(fields, config);
  CheckLayerTypes(fields, config.sliding_window != 0);
  config.rope_halves = true;
  config.qk_norm = *architecture == Architecture::kQwen3;
  if (fields.error()) return *fields.error();
  if (const Status done = FinishConfig(name, &config); !done) return done.error();
  if (const Status done = ReadRope(fields, &config); !done) return done.error();
  return config;
}

}  // namespace kvrm
