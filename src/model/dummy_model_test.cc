// SPDX-License-Identifier: Apache-2.0
#include "model/dummy_model.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace kvrm {
namespace {

// Nothing is packed here: only the images are made.
constexpr DummyOptions kRoom = {.available_bytes = std::uint64_t{1} << 40};

std::string RefusalOf(const std::string& spec) {
  try {
    const DummyModel dummy(spec, {.available_bytes = std::uint64_t{1} << 30});
  } catch (const StartError& error) {
    return error.what();
  }
  return "not refused";
}

// Loading checks every field of the configuration, every tensor and the vocabulary.
TEST(DummyModel, EveryShapeIsAModelOfItsSize) {
  struct Expected {
    const char* spec;
    double parameters;  // as its publisher counts them, a tied output once
  };
  for (const Expected& e :
       {Expected{"135M", 134.5e6}, Expected{"0.5B", 494.0e6}, Expected{"0.6B", 596.0e6},
        Expected{"1.2B:q4_k_m", 1235.8e6}, Expected{"8B:q4_0", 8030.3e6}}) {
    SCOPED_TRACE(e.spec);
    const DummyModel dummy(e.spec, kRoom);
    EXPECT_NEAR(static_cast<double>(dummy.model().num_parameters()), e.parameters,
                e.parameters * 1e-3);
    EXPECT_EQ(dummy.model().tokenizer().num_tokens(), dummy.model().config().vocab_size);
    EXPECT_LT(dummy.committed_bytes(), dummy.model().weight_bytes());
  }
}

TEST(DummyModel, ShapesDifferWhereTheirModelsDo) {
  EXPECT_EQ(DummyModel::Shapes().size(), 5u);
  const DummyModel qwen2("0.5b:Q4_0", kRoom);
  EXPECT_TRUE(qwen2.model().config().qkv_bias);
  EXPECT_TRUE(qwen2.model().config().tied_output);
  EXPECT_FALSE(qwen2.model().weights().layers[0].k_bias.empty());
  const DummyModel qwen3("0.6B:q4_0", kRoom);
  EXPECT_TRUE(qwen3.model().config().qk_norm);
  EXPECT_EQ(qwen3.model().config().head_dim, 128u);
  const DummyModel llama("135M:q4_0");
  EXPECT_FALSE(llama.model().config().rope_halves);
}

TEST(DummyModel, MixesTypesAsConvertersDo) {
  const DummyModel dummy("1.2B:q4_k_m", kRoom);
  const ModelWeights& weights = dummy.model().weights();
  EXPECT_EQ(weights.output.type, DType::kQ6_K);
  EXPECT_EQ(weights.layers[0].q.type, DType::kQ4_K);
  EXPECT_EQ(weights.layers[0].down.type, DType::kQ6_K);
  int num_more = 0;
  for (const LayerWeights& layer : weights.layers) {
    EXPECT_EQ(layer.v.type, layer.down.type);
    num_more += layer.v.type == DType::kQ6_K ? 1 : 0;
  }
  EXPECT_EQ(num_more, 8);
  // Rows of 576 are no whole blocks of 256.
  const DummyModel narrow("135M:q4_k_m");
  EXPECT_EQ(narrow.model().weights().layers[0].q.type, DType::kQ5_0);
  EXPECT_EQ(narrow.model().weights().output.type, DType::kQ8_0);
  EXPECT_EQ(narrow.model().weights().layers[0].down.type, DType::kQ6_K);
}

TEST(DummyModel, TheSameSeedGivesTheSameWeights) {
  const auto bytes = [](const DummyOptions& options) {
    const DummyModel dummy("135M:q4_0", options);
    const WeightTensor& down = dummy.model().weights().layers[7].down;
    return std::vector<std::byte>(down.data.begin(), down.data.end());
  };
  const std::vector<std::byte> first = bytes({.seed = 3});
  EXPECT_EQ(first, bytes({.seed = 3}));
  EXPECT_NE(first, bytes({.seed = 4}));
}

TEST(DummyModel, DistinctWeightsTakeTheirMemory) {
  const DummyModel dummy("135M:q4_0", {.distinct = true});
  EXPECT_GE(dummy.committed_bytes(), dummy.model().weight_bytes());
}

TEST(DummyModel, TextGoesThroughTheVocabulary) {
  const DummyModel dummy("135M:q4_0");
  const Tokenizer& tokenizer = dummy.model().tokenizer();
  const std::string text = "Once, \xc3\xa9t\xc3\xa9!";
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text, {})), text);
  EXPECT_EQ(tokenizer.TokenBytes(1000), " w1000");
  EXPECT_EQ(tokenizer.stop_ids(), std::vector<std::int32_t>{49151});
}

TEST(DummyModel, RefusalsNameWhatThereIs) {
  EXPECT_EQ(RefusalOf("7B"), "--dummy: '7B' is no shape; there are 135M, 0.5B, 0.6B, 1.2B, 8B");
  EXPECT_EQ(RefusalOf("8B:q3_k"),
            "--dummy: 'q3_k' is no type; there are q8_0, q4_0, q5_0, q4_k_m, q5_k, q6_k, bf16, "
            "f16, f32");
  EXPECT_EQ(
      RefusalOf("8B:f32"),
      "--dummy 8B:f32 needs 32121044992 bytes for its weights, and 1073741824 bytes of memory "
      "are available");
}

}  // namespace
}  // namespace kvrm
