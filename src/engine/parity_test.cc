// SPDX-License-Identifier: Apache-2.0
// Parity with reference logits of an independent engine (testdata/golden/README.md), and with the
// greedy texts of small trained models where they are at hand.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/engine.h"
#include "engine/scorer.h"
#include "exec/cpu_executor.h"
#include "model/weights.h"

namespace kvrm {
namespace {

namespace fs = std::filesystem;

fs::path SharedFolder() {
  if (const char* shared = std::getenv("KVRM_SHARED")) return shared;
  return fs::path(KVRM_SOURCE_DIR) / ".." / "shared";
}

fs::path GoldenFolder() {
  const fs::path all = SharedFolder() / "golden";
  return fs::exists(all / "goldens.json") ? all : fs::path(KVRM_SOURCE_DIR) / "testdata/golden";
}

// How far a default run may be from the exact dequantised model: the rounding of 16-bit weights'
// activations and cache, or of 8-bit activations.
struct Bound {
  double relative;
  double mean_kl;
};

Bound BoundOf(const std::string& name) {
  if (name.ends_with("-BF16")) return {1.2e-2, 2.5e-3};
  if (name.ends_with("-F16")) return {2.5e-3, 2.5e-3};
  return {4e-2, 2.5e-3};
}

struct Distance {
  double worst_relative = 0.0;  // max over positions of |out - ref| / |ref|
  double mean_kl = 0.0;         // mean over positions of KL(ref || out)
};

double KlDivergence(std::span<const float> reference, std::span<const float> output) {
  const auto log_sum = [](std::span<const float> logits) {
    double top = -1e30;
    for (const float x : logits)
      top = std::max(top, static_cast<double>(x));
    double sum = 0.0;
    for (const float x : logits)
      sum += std::exp(static_cast<double>(x) - top);
    return top + std::log(sum);
  };
  const double reference_norm = log_sum(reference);
  const double output_norm = log_sum(output);
  double kl = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_norm;
    const double log_q = static_cast<double>(output[i]) - output_norm;
    kl += std::exp(log_p) * (log_p - log_q);
  }
  return kl;
}

Distance Measure(const Model& model, const std::vector<std::int32_t>& tokens,
                 std::span<const float> reference, const ScorerOptions& options) {
  const std::size_t vocab = model.config().vocab_size;
  Scorer scorer(model, options);
  Distance distance;
  std::size_t positions = 0;
  scorer.Score(tokens, [&](std::uint32_t position, std::span<const float> logits) {
    const std::span<const float> expected = reference.subspan(position * vocab, vocab);
    double error = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < vocab; ++i) {
      const double difference = static_cast<double>(logits[i]) - static_cast<double>(expected[i]);
      error += difference * difference;
      norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    distance.worst_relative = std::max(distance.worst_relative, std::sqrt(error / norm));
    distance.mean_kl += KlDivergence(expected, logits);
    ++positions;
  });
  EXPECT_EQ(positions, tokens.size());
  distance.mean_kl /= static_cast<double>(positions);
  return distance;
}

std::vector<std::int32_t> Ids(const json::value& list) {
  std::vector<std::int32_t> ids;
  for (const json::value& id : list.as_array())
    ids.push_back(static_cast<std::int32_t>(id.as_int64()));
  return ids;
}

TEST(Parity, GoldenLogitsOfEveryTypeAndArchitecture) {
  const fs::path folder = GoldenFolder();
  const json::value goldens =
      OrThrow(ParseJson(OrThrow(ReadFile((folder / "goldens.json").string(), 1u << 20))));
  std::printf("%-22s %14s", "relative error, worst", "reference");
  const std::vector<const char*> tables = {"scalar", "avx2", "avx512", "avx512_bf16"};
  for (const char* table : tables)
    std::printf(" %12s", table);
  std::printf(" %12s\n", "mean KL");
  std::size_t count = 0;
  for (const auto& golden : goldens.as_object()) {
    const std::string name(golden.key());
    const fs::path file = folder / (name + ".gguf");
    if (!fs::exists(file)) continue;
    ++count;
    const Model model = OrThrow(Model::Load(file.string()));
    const std::vector<std::int32_t> tokens = Ids(golden.value().at("tokens"));
    const std::string bytes =
        OrThrow(ReadFile((folder / (name + ".logits.f32")).string(), 1u << 24));
    ASSERT_EQ(bytes.size(), tokens.size() * model.config().vocab_size * sizeof(float));
    std::vector<float> reference(bytes.size() / sizeof(float));
    std::memcpy(reference.data(), bytes.data(), bytes.size());

    ScorerOptions options = {.max_context = static_cast<std::uint32_t>(tokens.size()),
                             .num_threads = 1,
                             .kernels = "reference",
                             .kv_dtype = DType::kF32};
    const Distance exact = Measure(model, tokens, reference, options);
    EXPECT_LE(exact.worst_relative, 1e-4) << name;
    std::printf("%-22s %14.2e", name.c_str(), exact.worst_relative);
    const Bound bound = BoundOf(name);
    double worst_kl = 0.0;
    for (const char* table : tables) {
      if (FindCpuKernels(table) == nullptr) {
        std::printf(" %12s", "-");
        continue;
      }
      options.kernels = table;
      options.kv_dtype = DType::kF16;
      const Distance distance = Measure(model, tokens, reference, options);
      EXPECT_LE(distance.worst_relative, bound.relative) << name << ' ' << table;
      EXPECT_LE(distance.mean_kl, bound.mean_kl) << name << ' ' << table;
      worst_kl = std::max(worst_kl, distance.mean_kl);
      std::printf(" %12.2e", distance.worst_relative);
    }
    std::printf(" %12.2e\n", worst_kl);
  }
  EXPECT_GE(count, 9u) << "of " << folder;
}

std::vector<std::int32_t> Greedy(const Model& model, const std::vector<std::int32_t>& prompt,
                                 std::uint32_t num_tokens, const EngineOptions& options) {
  const SystemClock clock;
  Engine engine(model, options, clock);
  Request request = {.prompt = prompt, .max_tokens = num_tokens, .sampling = {.temperature = 0.0f}};
  OrThrow(engine.Submit(request));
  std::vector<std::int32_t> tokens;
  for (;;) {
    engine.Step();
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      tokens.push_back(event.token);
      if (event.finish != FinishReason::kNone) return tokens;
    }
  }
}

void ExpectKnownText(const std::string& path, const json::value& golden) {
  const Model model = OrThrow(Model::Load(path));
  const std::vector<std::int32_t> prompt = Ids(golden.at("prompt_ids"));
  EXPECT_EQ(model.tokenizer().Encode(golden.at("prompt").as_string().c_str(), {}), prompt) << path;
  const std::vector<std::int32_t> expected = Ids(golden.at("greedy_ids"));
  const EngineOptions options = {
      .max_rows = 1, .num_threads = 1, .kernels = "reference", .kv_dtype = DType::kF32};
  const std::vector<std::int32_t> exact =
      Greedy(model, prompt, static_cast<std::uint32_t>(expected.size()), options);
  EXPECT_EQ(exact, expected) << path;
  const std::string text = model.tokenizer().Decode(exact);
  EXPECT_EQ(text, golden.at("greedy_text").as_string().c_str()) << path;
  std::printf("%s: %s\n", fs::path(path).filename().c_str(), text.substr(0, 72).c_str());
}

TEST(Parity, SmallTrainedModelsWriteTheirKnownTexts) {
  const fs::path models = SharedFolder() / "data" / "models";
  if (!fs::exists(models)) GTEST_SKIP() << "no folder " << models;
  std::size_t count = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(models)) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".golden.json")) continue;
    const json::value golden = OrThrow(ParseJson(OrThrow(ReadFile(path, 1u << 20))));
    const fs::path folder = entry.path().parent_path();
    ExpectKnownText((folder / golden.at("file").as_string().c_str()).string(), golden);
    // The same weights as a Hugging Face folder take the other road through the readers.
    if (fs::exists(folder / "config.json")) ExpectKnownText(folder.string(), golden);
    ++count;
  }
  EXPECT_GE(count, 1u);
}

}  // namespace
}  // namespace kvrm
