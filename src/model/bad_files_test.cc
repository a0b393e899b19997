// SPDX-License-Identifier: Apache-2.0
// Malformed model files by the thousand: each is refused with one clear line or is harmless, none
// crashes, and none makes the reader allocate out of proportion to its size (F1-F3, F5, F7).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "base/counted_new_for_test.h"
#include "base/rng.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/small_model.h"
#include "model/weights.h"

namespace kvrm {
namespace {

struct Tally {
  std::size_t cases = 0;
  std::size_t refused = 0;
};

// Every kind of this run, for the table at the end.
std::map<std::string, Tally>& Tallies() {
  static std::map<std::string, Tally> tallies;
  return tallies;
}

// Runs `parse`, which gives the error's message or "", and judges it.
void Judge(const std::string& kind, std::size_t file_bytes, std::int64_t budget_bytes,
           const std::function<std::string()>& parse) {
  Tally& tally = Tallies()[kind];
  CountedNew& counts = ThreadNew();
  const std::int64_t live_before = counts.live_bytes;
  counts.peak_bytes = live_before;
  const std::string message = parse();
  const std::int64_t used = counts.peak_bytes - live_before;
  ++tally.cases;
  EXPECT_LE(used, 4 * static_cast<std::int64_t>(file_bytes) + budget_bytes) << kind;
  if (message.empty()) return;
  ++tally.refused;
  EXPECT_GE(message.size(), 12u) << message;
  EXPECT_LE(message.size(), 400u) << message;
  EXPECT_TRUE(
      std::all_of(message.begin(), message.end(), [](char c) { return c >= 0x20 && c < 0x7f; }))
      << kind << ": " << message;
}

constexpr std::int64_t kParserBudget = 64 << 10;
// The tokenizer has fixed tables of about 1 MiB, whatever the file.
constexpr std::int64_t kModelBudget = 2 << 20;

void TryGguf(const std::string& kind, const std::string& image) {
  Judge("gguf header: " + kind, image.size(), kParserBudget, [&image] {
    const Result<GgufFile> file = GgufFile::Parse(AsBytes(image), "t.gguf");
    return file ? std::string() : file.error().message;
  });
  Judge("gguf model: " + kind, image.size(), kModelBudget, [&image] {
    const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
    return model ? std::string() : model.error().message;
  });
}

void TrySafetensors(const std::string& kind, const std::string& image) {
  Judge("safetensors: " + kind, image.size(), kParserBudget, [&image] {
    const Result<SafetensorsFile> file = SafetensorsFile::Parse(AsBytes(image), "t.safetensors");
    return file ? std::string() : file.error().message;
  });
}

void TryConfig(const std::string& kind, const std::string& text) {
  Judge("config.json: " + kind, text.size(), kParserBudget, [&text] {
    const Result<ModelConfig> config = ConfigFromJson(text, "config.json");
    return config ? std::string() : config.error().message;
  });
}

void TryTokenizer(const std::string& kind, const std::string& text) {
  Judge("tokenizer.json: " + kind, text.size(), kModelBudget, [&text] {
    const Result<Tokenizer> tokenizer = Tokenizer::FromHuggingFace(text, SmallTokenizerConfig());
    return tokenizer ? std::string() : tokenizer.error().message;
  });
}

// What a count, length, dimension or offset can be at worst, cut to `bytes`.
std::vector<std::uint64_t> Extremes(std::size_t bytes) {
  const std::uint64_t max = bytes == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1;
  std::set<std::uint64_t> out;
  for (const std::uint64_t value :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{5}, max - 31, max - 1, max,
        std::uint64_t{1} << 31, (std::uint64_t{1} << 31) - 1, (std::uint64_t{1} << 32) - 1,
        std::uint64_t{1} << 32, std::uint64_t{1} << 62, (std::uint64_t{1} << 63) - 1,
        std::uint64_t{1} << 63, std::uint64_t{65'536}, std::uint64_t{4} << 20}) {
    out.insert(value & max);
  }
  return {out.begin(), out.end()};
}

std::string WithNumber(std::string image, std::size_t position, std::size_t bytes,
                       std::uint64_t value) {
  image.replace(position, bytes, GgufWriter::Raw(value).substr(0, bytes));
  return image;
}

GgufWriter SmallFile() {
  GgufWriter w = SmallLlama();
  w.AddBool("tokenizer.ggml.add_bos_token", true);
  w.AddUint("general.alignment", 32);
  return w;
}

std::string ModelError(const std::string& image) {
  const Result<Model> model = Model::FromGgufBytes(AsBytes(image), "t.gguf");
  return model ? "" : model.error().message;
}

TEST(BadFiles, TheWholeOnesAreRight) {
  EXPECT_EQ(ModelError(SmallFile().Build()), "");
  const std::string image = SmallLlamaTensors().Build();
  EXPECT_TRUE(SafetensorsFile::Parse(AsBytes(image), "t"));
  EXPECT_TRUE(ConfigFromJson(JsonObject(SmallLlamaConfig()), "t"));
  const Result<Tokenizer> tokenizer =
      Tokenizer::FromHuggingFace(SmallTokenizerJson(), SmallTokenizerConfig());
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
}

TEST(BadFiles, GgufCutOffAtEveryByte) {
  GgufWriter w = SmallFile();
  const std::string image = w.Build();
  for (std::size_t size = 0; size < image.size(); ++size)
    TryGguf("cut off", image.substr(0, size));
  // Only the padding after the last tensor may be missing.
  const Tally& tally = Tallies()["gguf model: cut off"];
  EXPECT_GE(tally.cases, 5000u);
  EXPECT_GE(tally.refused + w.alignment, tally.cases);
}

TEST(BadFiles, GgufEveryFieldAtItsExtremes) {
  GgufWriter w = SmallFile();
  const std::string image = w.Build();
  ASSERT_GT(w.fields.size(), 100u);
  for (const GgufWriter::Field& field : w.fields) {
    for (const std::uint64_t value : Extremes(field.bytes))
      TryGguf(field.what, WithNumber(image, field.position, field.bytes, value));
  }
}

TEST(BadFiles, GgufEveryTypeNumber) {
  GgufWriter w = SmallFile();
  const std::string image = w.Build();
  std::size_t tensor_types = 0;
  std::size_t value_types = 0;
  for (const GgufWriter::Field& field : w.fields) {
    const bool is_tensor = field.what == "tensor type" && ++tensor_types <= 3;
    const bool is_value =
        (field.what == "value type" || field.what == "element type") && ++value_types % 5 == 0;
    for (std::uint64_t type = 0; (is_tensor || is_value) && type < 256; ++type)
      TryGguf("every " + field.what, WithNumber(image, field.position, 4, type));
  }
}

TEST(BadFiles, GgufAlignments) {
  for (const std::uint64_t alignment : {0u, 1u, 2u, 3u, 4u, 7u, 9u, 24u, 31u, 33u, 48u, 65'535u,
                                        65'537u, 131'072u, 0x80000000u, 0xffffffffu}) {
    GgufWriter w = SmallFile();
    w.FindPair("general.alignment")->value = GgufWriter::Raw(static_cast<std::uint32_t>(alignment));
    const std::string image = w.Build();
    TryGguf("alignment", image);
    EXPECT_NE(ModelError(image).find("general.alignment"), std::string::npos) << alignment;
  }
}

TEST(BadFiles, GgufDuplicatesAndOverlaps) {
  const GgufWriter whole = SmallFile();
  for (std::size_t i = 0; i < whole.pairs.size(); ++i) {
    GgufWriter w = whole;
    w.pairs.push_back(w.pairs[i]);
    TryGguf("duplicate key", w.Build());
  }
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    GgufWriter w = whole;
    w.tensors.push_back(w.tensors[i]);
    TryGguf("duplicate tensor", w.Build());
    for (std::size_t j = 0; j < whole.tensors.size(); ++j) {
      if (i == j) continue;
      w = whole;
      w.Build();
      w.tensors[i].fixed_offset = true;
      w.tensors[i].offset = w.tensors[j].offset;
      TryGguf("overlap", w.Build());
    }
  }
  for (const char* kind : {"duplicate key", "duplicate tensor", "overlap"}) {
    const Tally& tally = Tallies()["gguf header: " + std::string(kind)];
    EXPECT_EQ(tally.refused, tally.cases) << kind;
  }
}

TEST(BadFiles, GgufShapes) {
  const GgufWriter whole = SmallFile();
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    for (std::size_t d = 0; d < whole.tensors[i].dims.size(); ++d) {
      for (const std::uint64_t dim :
           {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{16}, std::uint64_t{64},
            std::uint64_t{1} << 31, std::uint64_t{1} << 32, std::uint64_t{1} << 58,
            std::uint64_t{1} << 59, std::uint64_t{1} << 63}) {
        if (dim == whole.tensors[i].dims[d]) continue;
        GgufWriter w = whole;
        w.tensors[i].dims[d] = dim;
        TryGguf("shape", w.Build());
      }
    }
    GgufWriter w = whole;
    w.tensors[i].dims = {};
    TryGguf("no dimensions", w.Build());
    w.tensors[i].dims = {32, 1, 1, 1, 1};
    TryGguf("five dimensions", w.Build());
    w = whole;
    w.tensors[i].name += "x";
    TryGguf("unknown tensor", w.Build());
    w = whole;
    w.tensors.erase(w.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    TryGguf("missing tensor", w.Build());
  }
  for (const char* kind :
       {"shape", "no dimensions", "five dimensions", "unknown tensor", "missing tensor"}) {
    const Tally& tally = Tallies()["gguf model: " + std::string(kind)];
    EXPECT_EQ(tally.refused, tally.cases) << kind;
  }
}

// A value of every type for a key of any.
std::vector<std::pair<GgufType, std::string>> OddValues() {
  const auto floats = [](float value) {
    return std::pair{GgufType::kFloat32, GgufWriter::Raw(value)};
  };
  std::vector<std::pair<GgufType, std::string>> out = {
      floats(0.0f),
      floats(-1.0f),
      floats(1e30f),
      floats(1e-45f),
      floats(std::numeric_limits<float>::infinity()),
      floats(-std::numeric_limits<float>::infinity()),
      floats(std::numeric_limits<float>::quiet_NaN()),
      {GgufType::kFloat64, GgufWriter::Raw(1e300)},
      {GgufType::kBool, std::string(1, '\1')},
      {GgufType::kString, GgufWriter::RawString("")},
      {GgufType::kString, GgufWriter::RawString("12\n\x1b")},
      {GgufType::kInt8, GgufWriter::Raw<std::int8_t>(-1)},
      {GgufType::kInt32, GgufWriter::Raw<std::int32_t>(std::numeric_limits<std::int32_t>::min())},
      {GgufType::kInt64, GgufWriter::Raw<std::int64_t>(-1)},
      {GgufType::kArray, GgufWriter::Raw<std::uint32_t>(4) + GgufWriter::Raw<std::uint64_t>(0)},
      {GgufType::kArray, GgufWriter::Raw<std::uint32_t>(5) + GgufWriter::Raw<std::uint64_t>(1) +
                             GgufWriter::Raw<std::int32_t>(-1)},
      {GgufType::kArray, GgufWriter::Raw<std::uint32_t>(8) + GgufWriter::Raw<std::uint64_t>(1) +
                             GgufWriter::RawString("x")}};
  for (const std::uint64_t value : Extremes(8))
    out.emplace_back(GgufType::kUint64, GgufWriter::Raw(value));
  return out;
}

TEST(BadFiles, GgufHyperParameters) {
  const GgufWriter whole = SmallFile();
  for (std::size_t i = 0; i < whole.pairs.size(); ++i) {
    GgufWriter w = whole;
    w.pairs.erase(w.pairs.begin() + static_cast<std::ptrdiff_t>(i));
    TryGguf("missing key", w.Build());
    for (const auto& [type, value] : OddValues()) {
      w = whole;
      w.pairs[i].type = static_cast<std::uint32_t>(type);
      w.pairs[i].value = value;
      TryGguf("odd value", w.Build());
    }
  }
  for (const char* key :
       {"llama.attention.key_length", "llama.attention.value_length",
        "llama.attention.sliding_window", "llama.expert_count", "llama.rope.scaling.type",
        "llama.rope.scaling.factor", "llama.vocab_size", "general.type", "split.count",
        "general.sampling.temp", "general.sampling.top_k", "llama.attn_logit_softcapping",
        "tokenizer.chat_template"}) {
    for (const auto& [type, value] : OddValues()) {
      GgufWriter w = whole;
      w.AddRaw(key, type, value);
      TryGguf("odd optional value", w.Build());
    }
  }
}

TEST(BadFiles, GgufVocabularies) {
  const GgufWriter whole = SmallFile();
  const auto with_tokens = [&whole](const std::vector<std::string>& tokens) {
    GgufWriter w = whole;
    w.Remove("tokenizer.ggml.tokens");
    w.AddStrings("tokenizer.ggml.tokens", tokens);
    TryGguf("vocabulary", w.Build());
  };
  for (const char* odd : {"<0x-1>", "<0xZZ>", "<0x>", "<0x1>", "<0x100>", "<0xFFFFFFFFFF>", "", "a",
                          "\xff\xfe", "\xe2\x96", "<0x00>", "\n"}) {
    with_tokens({"<unk>", "<s>", "</s>", "a", "b", "c", "d", odd});
    with_tokens({odd, odd, odd, odd, odd, odd, odd, odd});
  }
  with_tokens({});
  with_tokens({"<unk>"});
  with_tokens({"<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f"});
  for (const std::size_t count : {0u, 1u, 7u, 9u, 1000u}) {
    GgufWriter w = whole;
    w.Remove("tokenizer.ggml.scores");
    w.AddArray<float>("tokenizer.ggml.scores", GgufType::kFloat32, std::vector<float>(count));
    TryGguf("vocabulary", w.Build());
    w = whole;
    w.Remove("tokenizer.ggml.token_type");
    w.AddArray<std::int32_t>("tokenizer.ggml.token_type", GgufType::kInt32,
                             std::vector<std::int32_t>(count, 1));
    TryGguf("vocabulary", w.Build());
  }
  for (const float score :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    GgufWriter w = whole;
    w.Remove("tokenizer.ggml.scores");
    w.AddArray<float>("tokenizer.ggml.scores", GgufType::kFloat32, std::vector<float>(8, score));
    TryGguf("vocabulary", w.Build());
  }
  for (const std::int32_t type : {-1, 0, 7, 100, std::numeric_limits<std::int32_t>::max()}) {
    GgufWriter w = whole;
    w.Remove("tokenizer.ggml.token_type");
    w.AddArray<std::int32_t>("tokenizer.ggml.token_type", GgufType::kInt32,
                             std::vector<std::int32_t>(8, type));
    TryGguf("vocabulary", w.Build());
  }
  for (const char* model : {"bert", "t5", "rwkv", "none", "", "gpt2"}) {
    GgufWriter w = whole;
    w.FindPair("tokenizer.ggml.model")->value = GgufWriter::RawString(model);
    TryGguf("vocabulary", w.Build());
  }
}

// Headers that are nothing but entries cost the most memory for their size.
TEST(BadFiles, GgufManySmallEntries) {
  GgufWriter keys;
  for (int i = 0; i < 65'536; ++i)
    keys.AddBool(std::to_string(i), true);
  TryGguf("many keys", keys.Build());
  keys.AddBool("one more", true);
  TryGguf("many keys", keys.Build());
  GgufWriter tensors;
  for (int i = 0; i < 65'537; ++i)
    tensors.tensors.push_back({std::to_string(i), 0, {1}, "1234", 0, false});
  TryGguf("many tensors", tensors.Build());
  tensors.tensors.pop_back();
  TryGguf("many tensors", tensors.Build());
  const Tally& tally = Tallies()["gguf header: many keys"];
  EXPECT_EQ(tally.cases, 2u);
  EXPECT_EQ(tally.refused, 1u);
  EXPECT_EQ(Tallies()["gguf header: many tensors"].refused, 1u);
}

TEST(BadFiles, GgufRandomBytes) {
  Rng rng(20'260'101);
  const std::string image = SmallFile().Build();
  for (int i = 0; i < 3000; ++i) {
    std::string bad = image;
    const std::uint64_t changes = rng.Between(1, 4);
    // The header is where it hurts.
    for (std::uint64_t c = 0; c < changes; ++c)
      bad[rng.Below(2000)] = static_cast<char>(rng.Below(256));
    TryGguf("random bytes", bad);
  }
}

TEST(BadFiles, SafetensorsCutOffAndLengths) {
  const SafetensorsWriter w = SmallLlamaTensors();
  const std::string image = w.Build();
  for (std::size_t size = 0; size < 8 + w.Header().size() + 64; ++size)
    TrySafetensors("cut off", image.substr(0, size));
  const Tally& tally = Tallies()["safetensors: cut off"];
  EXPECT_EQ(tally.refused, tally.cases);
  for (const std::uint64_t value : Extremes(8))
    TrySafetensors("header length", WithNumber(image, 0, 8, value));
  TrySafetensors("trailing data", image + "x");
}

TEST(BadFiles, SafetensorsHeaderTexts) {
  const SafetensorsWriter w = SmallLlamaTensors();
  const std::string header = w.Header();
  for (std::size_t i = 0; i < header.size(); ++i) {
    std::string removed = header;
    removed.erase(i, 1);
    TrySafetensors("a character less", SafetensorsWriter::Assemble(removed, w.data()));
    for (const char c : {'{', '}', '[', ']', '"', ',', ':', '0', '9', '-', '.', 'e', '\\', '\0'}) {
      if (header[i] == c) continue;
      std::string replaced = header;
      replaced[i] = c;
      TrySafetensors("another character", SafetensorsWriter::Assemble(replaced, w.data()));
    }
  }
  for (const char* number : {"-1", "00", "1.0", "1e3", "18446744073709551615",
                             "18446744073709551616", "9223372036854775808", "null", "true", "\"1\"",
                             "[]", "{}", "99999999999999999999999999999999"}) {
    const std::string n = number;
    TrySafetensors("numbers",
                   SafetensorsWriter::Assemble(
                       R"({"a":{"dtype":"U8","shape":[)" + n + R"(],"data_offsets":[0,1]}})", "x"));
    TrySafetensors("numbers",
                   SafetensorsWriter::Assemble(
                       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[)" + n + ",1]}}", "x"));
    TrySafetensors("numbers",
                   SafetensorsWriter::Assemble(
                       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,)" + n + "]}}", "x"));
  }
  std::string deep = "{\"a\":";
  deep.append(100'000, '[');
  TrySafetensors("deep nesting", SafetensorsWriter::Assemble(deep, ""));
  std::string many = "{";
  for (int i = 0; i < 70'000; ++i)
    many += (i == 0 ? "\"" : ",\"") + std::to_string(i) +
            R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  TrySafetensors("too many tensors", SafetensorsWriter::Assemble(many + "}", ""));
}

TEST(BadFiles, ConfigFields) {
  const JsonFieldTexts whole = SmallLlamaConfig();
  const std::string text = JsonObject(whole);
  for (std::size_t size = 0; size < text.size(); ++size)
    TryConfig("cut off", text.substr(0, size));
  std::vector<std::string> names;
  for (const auto& field : whole)
    names.push_back(field.first);
  names.insert(names.end(), {"head_dim", "sliding_window", "use_sliding_window", "layer_types",
                             "rope_parameters", "quantization_config", "num_local_experts",
                             "mlp_bias", "partial_rotary_factor"});
  for (const std::string& name : names) {
    JsonFieldTexts without = whole;
    std::erase_if(without, [&name](const auto& field) { return field.first == name; });
    TryConfig("missing field", JsonObject(without));
    for (const char* value : {"null",
                              "true",
                              "false",
                              "0",
                              "-1",
                              "1",
                              "1.5",
                              "-0.0",
                              "1e400",
                              "-1e400",
                              "1e-400",
                              "2147483648",
                              "4294967296",
                              "9223372036854775808",
                              "18446744073709551616",
                              "\"\"",
                              "\"x\\ny\"",
                              "[]",
                              "{}",
                              "[1]",
                              "[null]",
                              "{\"type\":1}",
                              "{\"rope_type\":\"llama3\"}",
                              "{\"type\":\"linear\",\"factor\":0}",
                              "{\"type\":\"linear\",\"factor\":-1}"}) {
      TryConfig("odd value", WithField(whole, name, value));
    }
  }
  TryConfig("deep nesting", std::string(10'000, '['));
  TryConfig("deep nesting", "{\"a\":" + std::string(10'000, '['));
}

TEST(BadFiles, TokenizerTexts) {
  const std::string text = SmallTokenizerJson();
  for (std::size_t size = 0; size < text.size(); ++size)
    TryTokenizer("cut off", text.substr(0, size));
  const Tally& tally = Tallies()["tokenizer.json: cut off"];
  EXPECT_EQ(tally.refused, tally.cases);
  TryTokenizer("deep nesting", std::string(10'000, '['));
  Rng rng(7);
  for (int i = 0; i < 500; ++i) {
    std::string bad = text;
    bad[rng.Below(bad.size())] = static_cast<char>(rng.Below(256));
    TryTokenizer("random bytes", bad);
  }
}

// Prints what was tried; the tests above have judged each case.
class BadFilesTable : public testing::Environment {
 public:
  void TearDown() override {
    if (Tallies().empty()) return;
    Tally all;
    std::printf("%-40s %8s %8s %9s\n", "malformed files", "cases", "refused", "harmless");
    for (const auto& [kind, tally] : Tallies()) {
      std::printf("%-40s %8zu %8zu %9zu\n", kind.c_str(), tally.cases, tally.refused,
                  tally.cases - tally.refused);
      all.cases += tally.cases;
      all.refused += tally.refused;
    }
    std::printf("%-40s %8zu %8zu %9zu\n", "all", all.cases, all.refused, all.cases - all.refused);
  }
};
const testing::Environment* const kTable = testing::AddGlobalTestEnvironment(new BadFilesTable);

}  // namespace
}  // namespace kvrm
