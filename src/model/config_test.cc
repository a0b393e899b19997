// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/config_checks.h"
#include "model/gguf.h"
#include "model/small_model.h"

namespace kvrm {
namespace {

Result<ModelConfig> FromWriter(GgufWriter writer) {
  const std::string image = writer.Build();
  const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
  if (!file) return file.error();
  return ConfigFromGguf(*file);
}

std::string GgufError(GgufWriter writer) {
  const Result<ModelConfig> config = FromWriter(std::move(writer));
  return config ? "" : config.error().message;
}

std::string JsonError(const std::string& field, const std::string& text) {
  const Result<ModelConfig> config =
      ConfigFromJson(WithField(SmallLlamaConfig(), field, text), "config.json");
  return config ? "" : config.error().message;
}

void ExpectContains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << '"' << text << "\" lacks \"" << part << '"';
}

TEST(Config, GgufFieldsArrive) {
  GgufWriter w = SmallLlama();
  w.AddUint("llama.attention.sliding_window", 16);
  const Result<ModelConfig> config = FromWriter(w);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->name, "small");
  EXPECT_EQ(config->num_layers, 1u);
  EXPECT_EQ(config->hidden_dim, 32u);
  EXPECT_EQ(config->ffn_dim, 32u);
  EXPECT_EQ(config->num_heads, 2u);
  EXPECT_EQ(config->num_kv_heads, 1u);
  EXPECT_EQ(config->head_dim, 16u);
  EXPECT_EQ(config->max_context, 64u);
  EXPECT_EQ(config->sliding_window, 16u);
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_EQ(config->rope_dim, 16u);
  EXPECT_EQ(config->rope_base, 10000.0f);
  EXPECT_FALSE(config->rope_halves);
  EXPECT_TRUE(config->rope_factors.empty());
}

TEST(Config, JsonFieldsArrive) {
  const Result<ModelConfig> config = ConfigFromJson(JsonObject(SmallLlamaConfig()), "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->hidden_dim, 32u);
  EXPECT_EQ(config->head_dim, 16u);
  EXPECT_EQ(config->vocab_size, 8u);
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_TRUE(config->rope_halves);
  EXPECT_FALSE(config->tied_output);
  EXPECT_FALSE(config->qk_norm);
}

TEST(Config, UnknownArchitecturesAreNamed) {
  GgufWriter w = SmallLlama();
  w.FindPair("general.architecture")->value = GgufWriter::RawString("gemma3");
  ExpectContains(GgufError(w),
                 "architecture 'gemma3' is not supported; supported: llama, mistral, qwen2, qwen3");
  ExpectContains(JsonError("architectures", R"(["Gemma3ForCausalLM"])"),
                 "architecture 'Gemma3ForCausalLM' is not supported");
  ExpectContains(JsonError("architectures", "[]"), "architectures is not a list of one name");
}

TEST(Config, WhatWeDoNotComputeIsNamed) {
  const auto with_uint = [](const std::string& key, std::uint32_t value) {
    GgufWriter w = SmallLlama();
    w.AddUint(key, value);
    return GgufError(w);
  };
  ExpectContains(with_uint("llama.expert_count", 8), "a mixture of experts is not supported");
  EXPECT_EQ(with_uint("llama.expert_count", 0), "");
  ExpectContains(with_uint("split.count", 3), "one of 3 parts of a split model");
  ExpectContains(with_uint("llama.attention.value_length", 32), "a value length other than");
  EXPECT_EQ(with_uint("llama.attention.value_length", 16), "");
  GgufWriter w = SmallLlama();
  w.AddFloat("llama.attn_logit_softcapping", 50.0f);
  ExpectContains(GgufError(w), "soft-capping of attention is not supported");
  w = SmallLlama();
  w.AddString("llama.rope.scaling.type", "yarn");
  ExpectContains(GgufError(w), "rope scaling 'yarn' is not supported");
  w = SmallLlama();
  w.AddBool("llama.attention.causal", false);
  ExpectContains(GgufError(w), "not causal");

  ExpectContains(JsonError("num_local_experts", "8"), "a mixture of experts");
  ExpectContains(JsonError("hidden_act", "\"gelu\""), "activation 'gelu' is not supported");
  ExpectContains(JsonError("mlp_bias", "true"), "a bias in the feed-forward layers");
  EXPECT_EQ(JsonError("mlp_bias", "false"), "");
  ExpectContains(JsonError("partial_rotary_factor", "0.5"), "partial rotary embedding");
  ExpectContains(JsonError("vision_config", "{}"), "a vision model");
  ExpectContains(JsonError("quantization_config", R"({"quant_method":"awq"})"),
                 "quantization by 'awq' is not supported");
  for (const char* type : {"yarn", "longrope", "dynamic", "su", "mrope"}) {
    ExpectContains(JsonError("rope_scaling", R"({"type":")" + std::string(type) + R"("})"),
                   "rope scaling '" + std::string(type) + "' is not supported");
  }
}

TEST(Config, LimitsNameTheField) {
  GgufWriter w = SmallLlama();
  w.FindPair("llama.block_count")->value = GgufWriter::Raw<std::uint32_t>(1025);
  EXPECT_EQ(GgufError(w), "t.gguf: llama.block_count is 1025; the limits are 1 and 1024");
  w = SmallLlama();
  w.FindPair("llama.rope.freq_base")->value =
      GgufWriter::Raw(std::numeric_limits<float>::quiet_NaN());
  ExpectContains(GgufError(w), "llama.rope.freq_base is nan; it must be finite");
  w = SmallLlama();
  w.FindPair("llama.attention.head_count_kv")->value = GgufWriter::Raw<std::uint32_t>(3);
  ExpectContains(GgufError(w), "no multiple of the number of key-value heads, 3");
  w = SmallLlama();
  w.FindPair("llama.attention.head_count")->value = GgufWriter::Raw<std::uint32_t>(32);
  ExpectContains(GgufError(w), "the head dimension is 1; it must be even");
  EXPECT_EQ(JsonError("num_hidden_layers", "0"),
            "config.json: num_hidden_layers is 0; the limits are 1 and 1024");
  EXPECT_EQ(JsonError("num_hidden_layers", "1.5"),
            "config.json: num_hidden_layers is not a whole number from 1 to 1024");
  ExpectContains(JsonError("intermediate_size", "0"), "intermediate_size is 0");
}

TEST(Config, ValuesPerLayerMustBeEqual) {
  GgufWriter w = SmallLlama();
  w.Remove("llama.attention.head_count_kv");
  w.AddArray<std::uint32_t>("llama.attention.head_count_kv", GgufType::kUint32, {1, 1});
  EXPECT_EQ(GgufError(w), "");
  w.Remove("llama.attention.head_count_kv");
  w.AddArray<std::uint32_t>("llama.attention.head_count_kv", GgufType::kUint32, {1, 2});
  ExpectContains(GgufError(w), "differs from layer to layer");
}

TEST(Config, LinearRopeScalingIsAConstantFactor) {
  GgufWriter w = SmallLlama();
  w.AddString("llama.rope.scaling.type", "linear");
  w.AddFloat("llama.rope.scaling.factor", 4.0f);
  const Result<ModelConfig> gguf = FromWriter(w);
  ASSERT_TRUE(gguf) << gguf.error().message;
  EXPECT_EQ(gguf->rope_factors, std::vector<float>(8, 4.0f));
  const Result<ModelConfig> json = ConfigFromJson(
      WithField(SmallLlamaConfig(), "rope_scaling", R"({"type":"linear","factor":4.0})"), "c");
  ASSERT_TRUE(json) << json.error().message;
  EXPECT_EQ(json->rope_factors, gguf->rope_factors);
}

TEST(Config, RopeFreqsTensorGivesTheFactors) {
  GgufWriter w = SmallLlama();
  std::string data;
  for (int i = 0; i < 8; ++i)
    data += GgufWriter::Raw(1.0f + static_cast<float>(i));
  w.tensors.push_back({"rope_freqs.weight", 0, {8}, data, 0, false});
  const Result<ModelConfig> config = FromWriter(w);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->rope_factors, (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}));
  w.tensors.back().dims = {4, 2};
  EXPECT_EQ(GgufError(w), "");
  w.tensors.back().dims = {4};
  w.tensors.back().data.resize(16);
  ExpectContains(GgufError(w), "tensor 'rope_freqs.weight' is not F32 [8]");
}

// The parameters of Llama 3.1 8B. The wavelength of pair i is 2 pi 500000^(i / 64); it passes
// 8192 / 4 at i = 28.2 and 8192 / 1 at i = 35.01.
TEST(Config, Llama3RopeScaling) {
  const std::vector<float> factors = Llama3RopeFactors({8, 1, 4, 8192}, 128, 500000);
  ASSERT_EQ(factors.size(), 64u);
  EXPECT_EQ(factors[0], 1.0f);
  EXPECT_EQ(factors[28], 1.0f);
  EXPECT_GT(factors[29], 1.0f);
  EXPECT_LT(factors[34], 8.0f);
  EXPECT_EQ(factors[36], 8.0f);
  EXPECT_EQ(factors[63], 8.0f);
  for (std::size_t i = 1; i < factors.size(); ++i)
    EXPECT_GE(factors[i], factors[i - 1]);
  // At i = 32 the wavelength is 2 pi sqrt(500000) = 4442.88: smooth = (1.84385 - 1) / 3 = 0.281284,
  // and the factor 1 / ((1 - smooth) / 8 + smooth) = 2.694.
  EXPECT_NEAR(factors[32], 2.6944f, 1e-3f);

  const Result<ModelConfig> config = ConfigFromJson(
      WithField(SmallLlamaConfig(), "rope_scaling",
                R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
                R"("high_freq_factor":4.0,"original_max_position_embeddings":8192})"),
      "c");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->rope_factors, Llama3RopeFactors({8, 1, 4, 8192}, 16, 10000));
  ExpectContains(JsonError("rope_scaling", R"({"rope_type":"llama3","factor":8.0})"),
                 "low_freq_factor is missing");
}

TEST(Config, NewerFilesKeepRopeTogether) {
  const Result<ModelConfig> config =
      ConfigFromJson(WithField(SmallLlamaConfig(), "rope_parameters",
                               R"({"rope_type":"default","rope_theta":500000.0})"),
                     "c");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->rope_base, 500000.0f);
}

TEST(Config, SlidingWindowsPerArchitecture) {
  const auto window = [](const std::string& architecture, const JsonFieldTexts& more) {
    JsonFieldTexts fields = SmallLlamaConfig();
    fields[0].second = "[\"" + architecture + "\"]";
    fields.insert(fields.end(), more.begin(), more.end());
    fields.emplace_back("head_dim", "16");
    const Result<ModelConfig> config = ConfigFromJson(JsonObject(fields), "c");
    return config ? std::to_string(config->sliding_window) : config.error().message;
  };
  EXPECT_EQ(window("LlamaForCausalLM", {{"sliding_window", "16"}}), "0");
  EXPECT_EQ(window("MistralForCausalLM", {{"sliding_window", "16"}}), "16");
  EXPECT_EQ(window("MistralForCausalLM", {{"sliding_window", "null"}}), "0");
  EXPECT_EQ(window("MistralForCausalLM", {}), "0") << "4096 is beyond the context";
  EXPECT_EQ(window("Qwen2ForCausalLM", {{"sliding_window", "16"}}), "0");
  EXPECT_EQ(window("Qwen2ForCausalLM", {{"sliding_window", "16"}, {"use_sliding_window", "false"}}),
            "0");
  EXPECT_EQ(window("Qwen2ForCausalLM", {{"sliding_window", "16"},
                                        {"use_sliding_window", "true"},
                                        {"max_window_layers", "0"}}),
            "16");
  EXPECT_EQ(window("Qwen2ForCausalLM", {{"sliding_window", "16"},
                                        {"use_sliding_window", "true"},
                                        {"max_window_layers", "1"}}),
            "0");
  ExpectContains(window("Qwen3ForCausalLM", {{"layer_types", R"(["sliding_attention"])"}}),
                 "a layer of type 'sliding_attention' here is not supported");
}

TEST(Config, Qwen3HasNormsAndHeadsOfItsOwn) {
  JsonFieldTexts fields = SmallLlamaConfig();
  fields[0].second = R"(["Qwen3ForCausalLM"])";
  const Result<ModelConfig> config = ConfigFromJson(WithField(fields, "head_dim", "64"), "c");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_TRUE(config->qk_norm);
  EXPECT_EQ(config->head_dim, 64u);
  EXPECT_EQ(config->rope_dim, 64u);
}

}  // namespace
}  // namespace kvrm
