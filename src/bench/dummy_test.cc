// SPDX-License-Identifier: Apache-2.0
// Random weights as kernels and engines see them: model/ itself can only look at their bytes.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "kernels/cpu_kernels.h"
#include "model/dummy_model.h"
#include "model/random_blocks.h"

namespace kvrm {
namespace {

TEST(RandomBlocks, EveryTypeIsSpreadAsAsked) {
  constexpr std::uint32_t kCols = 1u << 16;
  constexpr double kDeviation = 0.02;
  for (int t = 0; t < kNumDTypes; ++t) {
    const auto type = static_cast<DType>(t);
    SCOPED_TRACE(DTypeName(type));
    std::vector<std::byte> blocks(kCols / DTypeBlockElements(type) * DTypeBlockBytes(type));
    Rng rng(7);
    FillRandomBlocks(type, kDeviation, &rng, blocks);
    std::vector<float> values(kCols);
    FindCpuKernels("reference")
        ->mat[t]
        .row({.data = blocks.data(), .rows = 1, .cols = kCols, .type = type}, 0, values.data());
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      ASSERT_TRUE(std::isfinite(value));
      sum += static_cast<double>(value);
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    EXPECT_NEAR(sum / kCols, 0.0, 0.03 * kDeviation);
    EXPECT_NEAR(std::sqrt(squares / kCols), kDeviation, 0.1 * kDeviation);
  }
}

constexpr std::uint32_t kNumTokens = 6;

// Ids of a prompt's continuation, one by the likeliest tokens and one by chance.
std::vector<std::vector<std::int32_t>> Continue(const Model& model) {
  const SystemClock clock;
  Engine engine(model, {.max_rows = 2, .max_context = 64, .num_threads = 2}, clock);
  std::map<RequestId, std::vector<std::int32_t>> outputs;
  for (const SamplingParams& sampling :
       {SamplingParams{.temperature = 0.0f},
        SamplingParams{.temperature = 1.0f, .top_p = 0.9f, .seed = 3}}) {
    outputs[OrThrow(engine.Submit({.prompt = model.tokenizer().Encode("Once", {}),
                                   .max_tokens = kNumTokens,
                                   .sampling = sampling}))] = {};
  }
  while (engine.Step()) {
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      EXPECT_NE(event.finish, FinishReason::kError);
      if (event.token >= 0) outputs[event.request].push_back(event.token);
    }
  }
  std::vector<std::vector<std::int32_t>> ids;
  for (const auto& [id, output] : outputs)
    ids.push_back(output);
  return ids;
}

TEST(DummyModel, DecodesTheSameTokensEveryTime) {
  const DummyModel dummy("135M:q4_0");
  const std::vector<std::vector<std::int32_t>> outputs = Continue(dummy.model());
  ASSERT_EQ(outputs.size(), 2u);
  for (const std::vector<std::int32_t>& ids : outputs) {
    EXPECT_EQ(ids.size(), kNumTokens);
    EXPECT_GT(std::set<std::int32_t>(ids.begin(), ids.end()).size(), 2u);
  }
  EXPECT_NE(outputs[0], outputs[1]);
  const DummyModel again("135M:q4_0");
  EXPECT_EQ(outputs, Continue(again.model()));
}

TEST(DummyModel, TakesALongerContextAndNothingElse) {
  const DummyModel own("135M");
  const DummyModel longer("135M", {.context = 20'000});
  EXPECT_EQ(own.model().config().max_context, 8192u);
  EXPECT_EQ(longer.model().config().max_context, 20'000u);
  EXPECT_EQ(longer.model().config().rope_base, own.model().config().rope_base);
  EXPECT_EQ(longer.committed_bytes(), own.committed_bytes());
  EXPECT_THROW(DummyModel("135M", {.context = (16u << 20) + 1}), StartError);
}

}  // namespace
}  // namespace kvrm
