// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "model/safetensors.h"
#include "model/small_model.h"

namespace kvrm {
namespace {

namespace fs = std::filesystem;

std::string ErrorOf(GgufWriter writer) {
  const std::string image = writer.Build();
  const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
  return model ? "" : model.error().message;
}

void ExpectContains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << '"' << text << "\" lacks \"" << part << '"';
}

float At(const WeightTensor& tensor, std::size_t i) {
  float value = 0.0f;
  std::memcpy(&value, tensor.data.data() + i * sizeof(float), sizeof(float));
  return value;
}

// A folder that goes away with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "kvrm_weights_XXXXXX").string();
    CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }
  void Write(const std::string& name, std::string_view content) const {
    ASSERT_TRUE(WriteFile(path_ + "/" + name, content));
  }

 private:
  std::string path_;
};

void WriteSmallFolder(const TemporaryFolder& folder, const std::string& prefix = "model.") {
  folder.Write("config.json", JsonObject(SmallLlamaConfig()));
  folder.Write("model.safetensors", SmallLlamaTensors(prefix).Build());
  folder.Write("tokenizer.json", SmallTokenizerJson());
  folder.Write("tokenizer_config.json", SmallTokenizerConfig());
}

std::string FolderError(const TemporaryFolder& folder) {
  const Result<Model> model = Model::Load(folder.path());
  return model ? "" : model.error().message;
}

TEST(Weights, RolesOfASmallGguf) {
  GgufWriter w = SmallLlama();
  w.FindTensor("blk.0.attn_q.weight")->data = Q4Rows(32, 'q');
  w.FindTensor("blk.0.ffn_down.weight")->data = Q4Rows(32, 'd');
  const std::string image = w.Build();
  const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->config().vocab_size, kSmallVocab);
  EXPECT_TRUE(model->config().tied_output);
  EXPECT_FALSE(model->config().qkv_bias);
  EXPECT_EQ(model->tokenizer().num_tokens(), kSmallVocab);
  const ModelWeights& weights = model->weights();
  EXPECT_EQ(weights.output.data.data(), weights.embedding.data.data());
  ASSERT_EQ(weights.layers.size(), 1u);
  const LayerWeights& layer = weights.layers[0];
  EXPECT_EQ(layer.q.data[0], std::byte{'q'});
  EXPECT_EQ(layer.down.data[0], std::byte{'d'});
  EXPECT_EQ(layer.q.type, DType::kQ4_0);
  EXPECT_EQ(layer.k.rows, 16u);
  EXPECT_EQ(layer.k.cols, 32u);
  EXPECT_TRUE(layer.q_bias.empty());
  EXPECT_TRUE(layer.q_norm.empty());
  EXPECT_EQ(model->num_parameters(), 8u * 32 + 3 * 32 + 2 * 16 * 32 + 5 * 32 * 32);
  EXPECT_EQ(model->weight_bytes(), (8u + 2 * 16 + 5 * 32) * 18 + 3 * 32 * 4);
}

TEST(Weights, EveryMissingTensorIsNamed) {
  const GgufWriter whole = SmallLlama();
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    GgufWriter w = whole;
    const std::string name = w.tensors[i].name;
    w.tensors.erase(w.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    ExpectContains(ErrorOf(w), "tensor '" + name + "' is missing");
  }
}

TEST(Weights, UnknownTensorsAreNamed) {
  GgufWriter w = SmallLlama();
  w.tensors.push_back({"blk.0.attn_output.bias", 0, {32}, std::string(128, '\0'), 0, false});
  ExpectContains(ErrorOf(w), "tensor 'blk.0.attn_output.bias' is no part of a llama model");
  w = SmallLlama();
  w.tensors.push_back({"blk.1.attn_q.weight", 2, {32, 32}, Q4Rows(32), 0, false});
  ExpectContains(ErrorOf(w), "tensor 'blk.1.attn_q.weight' is no part");
  w = SmallLlama();
  w.tensors.push_back({"blk.0.attn_rot_embd.weight", 0, {8}, std::string(32, '\0'), 0, false});
  EXPECT_EQ(ErrorOf(w), "");
}

TEST(Weights, ShapesComeFromTheConfiguration) {
  GgufWriter w = SmallLlama();
  *w.FindTensor("blk.0.attn_k.weight") = {"blk.0.attn_k.weight", 2, {32, 32}, Q4Rows(32), 0, false};
  EXPECT_EQ(ErrorOf(w),
            "t.gguf: tensor 'blk.0.attn_k.weight' has 32 rows of 32; the configuration asks for "
            "16 rows of 32");
  w = SmallLlama();
  w.FindTensor("blk.0.attn_k.weight")->dims = {32, 4, 4};
  ExpectContains(ErrorOf(w), "more than two dimensions");
  w = SmallLlama();
  *w.FindTensor("output_norm.weight") = {"output_norm.weight",  8, {32},
                                         std::string(34, '\0'), 0, false};
  ExpectContains(ErrorOf(w), "a norm or bias of type Q8_0");
}

TEST(Weights, VocabularyAndEmbeddingMustAgree) {
  GgufWriter w = SmallLlama();
  *w.FindTensor("token_embd.weight") = {"token_embd.weight", 2, {32, 9}, Q4Rows(9), 0, false};
  EXPECT_EQ(ErrorOf(w), "") << "rows to spare are padding";
  *w.FindTensor("token_embd.weight") = {"token_embd.weight", 2, {32, 7}, Q4Rows(7), 0, false};
  ExpectContains(ErrorOf(w), "the vocabulary has 8 tokens, the embedding 7 rows");
  w.tensors.clear();
  ExpectContains(ErrorOf(w), "no weights here");
}

TEST(Weights, BiasesAreAllOrNone) {
  const auto bias = [](const std::string& name, std::uint64_t size) {
    return GgufWriter::Tensor{"blk.0.attn_" + name + ".bias", 1, {size},
                              std::string(size * 2, '\x3c'),  0, false};
  };
  GgufWriter w = SmallLlama();
  w.tensors.push_back(bias("q", 32));
  ExpectContains(ErrorOf(w), "tensor 'blk.0.attn_k.bias' is missing");
  w.tensors.push_back(bias("k", 16));
  w.tensors.push_back(bias("v", 16));
  const std::string image = w.Build();
  const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_TRUE(model->config().qkv_bias);
  const WeightTensor& q = model->weights().layers[0].q_bias;
  EXPECT_EQ(q.type, DType::kF32);
  EXPECT_EQ(q.rows, 1u);
  EXPECT_EQ(q.cols, 32u);
  // 0x3c3c as a half is 1 + 60 / 1024.
  EXPECT_EQ(At(q, 31), 1.05859375f);
}

TEST(Weights, SamplingDefaultsOfGguf) {
  GgufWriter w = SmallLlama();
  w.AddFloat("general.sampling.temp", 0.5f);
  w.AddRaw("general.sampling.top_k", GgufType::kInt32, GgufWriter::Raw<std::int32_t>(20));
  const std::string image = w.Build();
  const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->generation_defaults().temperature, 0.5f);
  EXPECT_EQ(model->generation_defaults().top_k, 20);
  EXPECT_FALSE(model->generation_defaults().top_p.has_value());
  w.AddFloat("general.sampling.top_p", 1.5f);
  ExpectContains(ErrorOf(w), "general.sampling.top_p is 1.5");
}

TEST(Weights, FolderWithAndWithoutPrefix) {
  for (const std::string prefix : {"model.", ""}) {
    const TemporaryFolder folder;
    WriteSmallFolder(folder, prefix);
    const Result<Model> model = Model::Load(folder.path() + "/");
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(model->config().name, fs::path(folder.path()).filename().string());
    EXPECT_FALSE(model->config().tied_output);
    EXPECT_NE(model->weights().output.data.data(), model->weights().embedding.data.data());
    EXPECT_EQ(model->weights().layers[0].q.type, DType::kBf16);
    const WeightTensor& norm = model->weights().output_norm;
    EXPECT_EQ(norm.type, DType::kF32);
    // 0x3f3f as bfloat16.
    EXPECT_EQ(At(norm, 0), 0.74609375f);
    EXPECT_EQ(model->generation_defaults().temperature, std::nullopt);
  }
}

TEST(Weights, FolderInSeveralFiles) {
  const TemporaryFolder folder;
  WriteSmallFolder(folder);
  fs::remove(folder.path() + "/model.safetensors");
  const std::string image = SmallLlamaTensors().Build();
  const Result<SafetensorsFile> whole = SafetensorsFile::Parse(AsBytes(image), "whole");
  ASSERT_TRUE(whole);
  SafetensorsWriter halves[2];
  std::string map;
  for (std::size_t i = 0; i < whole->tensors().size(); ++i) {
    const SafetensorsTensor& t = whole->tensors()[i];
    const std::string shape =
        t.num_dims == 1 ? "[" + std::to_string(t.shape[0]) + "]"
                        : "[" + std::to_string(t.shape[0]) + "," + std::to_string(t.shape[1]) + "]";
    halves[i % 2].Add(std::string(t.name), std::string(t.dtype), shape,
                      std::string(t.data.size(), '\0'));
    map += std::string(map.empty() ? "" : ",") + "\"" + std::string(t.name) + "\":\"part-" +
           std::to_string(i % 2) + ".safetensors\"";
  }
  folder.Write("model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  folder.Write("part-0.safetensors", halves[0].Build());
  ExpectContains(FolderError(folder), "part-1.safetensors");
  folder.Write("part-1.safetensors", halves[1].Build());
  const Result<Model> model = Model::Load(folder.path());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->weights().layers[0].gate.rows, 32u);
  folder.Write("part-1.safetensors", halves[0].Build());
  ExpectContains(FolderError(folder), "stands in two files");
}

TEST(Weights, TiedOutputOfAFolder) {
  const TemporaryFolder folder;
  WriteSmallFolder(folder);
  folder.Write("config.json", WithField(SmallLlamaConfig(), "tie_word_embeddings", "true"));
  const Result<Model> model = Model::Load(folder.path());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->weights().output.data.data(), model->weights().embedding.data.data());
}

TEST(Weights, DefaultsAndTemplateOfAFolder) {
  const TemporaryFolder folder;
  WriteSmallFolder(folder);
  folder.Write("generation_config.json", R"({"temperature":0.7,"top_p":0.8,"top_k":20})");
  folder.Write("chat_template.json", R"({"chat_template":"from json"})");
  {
    const Result<Model> model = Model::Load(folder.path());
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(model->generation_defaults().temperature, 0.7f);
    EXPECT_EQ(model->generation_defaults().top_p, 0.8f);
    EXPECT_EQ(model->generation_defaults().top_k, 20);
    EXPECT_EQ(model->chat_template(), "from json");
  }
  folder.Write("chat_template.jinja", "from jinja");
  folder.Write("generation_config.json", R"({"temperature":0.7,"do_sample":false})");
  const Result<Model> model = Model::Load(folder.path());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->chat_template(), "from jinja");
  EXPECT_EQ(model->generation_defaults().temperature, 0.0f);
  folder.Write("generation_config.json", R"({"temperature":-1})");
  ExpectContains(FolderError(folder), "temperature is -1");
}

TEST(Weights, WhatIsNoModelIsExplained) {
  const TemporaryFolder folder;
  ExpectContains(FolderError(folder), "has no config.json");
  folder.Write("x.gguf", "GGUF");
  ExpectContains(FolderError(folder), "it holds GGUF files: name one of them instead");
  WriteSmallFolder(folder);
  ASSERT_EQ(FolderError(folder), "");
  fs::remove(folder.path() + "/tokenizer.json");
  ExpectContains(FolderError(folder), "has no tokenizer.json");
  fs::remove(folder.path() + "/model.safetensors");
  ExpectContains(FolderError(folder), "pickled weights (*.bin, *.pth) are not supported");

  const auto file_error = [&folder](std::string_view content) {
    folder.Write("file", content);
    const Result<Model> model = Model::Load(folder.path() + "/file");
    return model ? "" : model.error().message;
  };
  ExpectContains(file_error(SmallLlamaTensors().Build()), "name its folder instead");
  ExpectContains(file_error("{\"architectures\":[]}"), "this is a JSON file");
  ExpectContains(file_error("PK\3\4 and so on"), "pickled PyTorch file");
  ExpectContains(file_error("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer");
  ExpectContains(file_error("some text"), "not a GGUF file");
  ExpectContains(file_error(""), "is empty");
  EXPECT_EQ(Model::Load(folder.path() + "/absent").error().code, ErrorCode::kNotFound);
}

TEST(Weights, DemoModelIsInsideTheProgram) {
  const Result<Model> model = Model::LoadDemo();
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_GT(model->num_parameters(), 0u);
  EXPECT_EQ(model->weights().layers.size(), model->config().num_layers);
  const Result<Model> file = Model::Load(KVRM_SOURCE_DIR "/models/kvrm-demo.gguf");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->weight_bytes(), model->weight_bytes());
  EXPECT_TRUE(
      std::equal(file->weights().embedding.data.begin(), file->weights().embedding.data.end(),
                 model->weights().embedding.data.begin(), model->weights().embedding.data.end()));
}

// Files outside the repository; empty where they are not.
std::string SharedFolder() {
  const char* named = std::getenv("KVRM_SHARED");
  const std::string path = named != nullptr ? named : KVRM_SOURCE_DIR "/../shared";
  return fs::is_directory(path) ? path : "";
}

TEST(Weights, GoldenModelsOfEveryTypeLoad) {
  const std::string shared = SharedFolder();
  if (shared.empty()) GTEST_SKIP() << "the golden models are not here";
  const std::map<std::string, std::vector<const char*>> families = {
      {"llama-gqa", {"BF16", "F16", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"}},
      {"llama3-rope", {"BF16", "F16"}},
      {"qwen2-bias", {"BF16", "F16"}},
      {"qwen3-qknorm", {"BF16", "F16"}}};
  for (const auto& [family, types] : families) {
    for (const char* type : types) {
      const Result<Model> model = Model::Load(shared + "/golden/" + family + "-" + type + ".gguf");
      ASSERT_TRUE(model) << model.error().message;
      const ModelConfig& config = model->config();
      EXPECT_EQ(config.num_layers, 2u);
      EXPECT_EQ(config.hidden_dim, 256u);
      EXPECT_EQ(config.ffn_dim, 512u);
      EXPECT_EQ(config.vocab_size, 512u);
      EXPECT_STREQ(DTypeName(model->weights().layers[1].down.type), type);
      EXPECT_EQ(model->weights().layers[1].output.cols, config.num_heads * config.head_dim);
      EXPECT_EQ(config.rope_halves, family[0] == 'q');
      EXPECT_EQ(config.qkv_bias, family == "qwen2-bias");
      EXPECT_EQ(config.qk_norm, family == "qwen3-qknorm");
      EXPECT_EQ(config.tied_output, family == "llama3-rope" || family == "qwen2-bias");
      EXPECT_EQ(config.rope_factors.size(), family == "llama3-rope" ? 16u : 0u);
      EXPECT_EQ(model->weights().layers[0].q_norm.cols, config.qk_norm ? config.head_dim : 0u);
      EXPECT_EQ(model->weights().layers[0].k_bias.cols,
                config.qkv_bias ? config.num_kv_heads * config.head_dim : 0u);
    }
  }
}

TEST(Weights, FolderAndGgufOfOneModelAgree) {
  const std::string shared = SharedFolder();
  const std::string path = shared + "/data/models/tinystories-656k";
  if (shared.empty() || !fs::is_directory(path)) GTEST_SKIP() << "the models are not here";
  const Result<Model> folder = Model::Load(path);
  ASSERT_TRUE(folder) << folder.error().message;
  const Result<Model> gguf = Model::Load(path + "/tinystories-656k-f32.gguf");
  ASSERT_TRUE(gguf) << gguf.error().message;
  const ModelConfig& a = folder->config();
  const ModelConfig& b = gguf->config();
  EXPECT_EQ(a.architecture, b.architecture);
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.hidden_dim, b.hidden_dim);
  EXPECT_EQ(a.ffn_dim, b.ffn_dim);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.max_context, b.max_context);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.rms_eps, b.rms_eps);
  EXPECT_EQ(a.rope_dim, b.rope_dim);
  EXPECT_EQ(a.rope_base, b.rope_base);
  EXPECT_EQ(a.rope_factors, b.rope_factors);
  EXPECT_EQ(a.tied_output, b.tied_output);
  EXPECT_EQ(a.qkv_bias, b.qkv_bias);
  EXPECT_EQ(a.qk_norm, b.qk_norm);
  // The same rotation, stored in two orders of rows.
  EXPECT_TRUE(a.rope_halves);
  EXPECT_FALSE(b.rope_halves);
  EXPECT_EQ(folder->num_parameters(), gguf->num_parameters());
  const auto equal = [](const WeightTensor& x, const WeightTensor& y) {
    return std::equal(x.data.begin(), x.data.end(), y.data.begin(), y.data.end());
  };
  EXPECT_TRUE(equal(folder->weights().embedding, gguf->weights().embedding));
  EXPECT_TRUE(equal(folder->weights().layers[1].v, gguf->weights().layers[1].v));
  EXPECT_TRUE(equal(folder->weights().layers[1].down, gguf->weights().layers[1].down));
  EXPECT_FALSE(equal(folder->weights().layers[1].q, gguf->weights().layers[1].q));
}

TEST(Weights, OtherSmallModelsLoad) {
  const std::string shared = SharedFolder();
  const std::string path = shared + "/data/models/";
  if (shared.empty() || !fs::is_directory(path)) GTEST_SKIP() << "the models are not here";
  const Result<Model> model = Model::Load(path + "stories3M/stories3M-q8_0.gguf");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->weights().layers[5].up.type, DType::kQ8_0);
  const Result<Model> narrow = Model::Load(path + "stories260K/stories260K-f32.gguf");
  ASSERT_TRUE(narrow) << narrow.error().message;
  EXPECT_EQ(narrow->config().head_dim, 8u);
  EXPECT_EQ(narrow->config().ffn_dim, 172u);
  EXPECT_EQ(narrow->weights().layers[4].down.cols, 172u);
}

}  // namespace
}  // namespace kvrm
