// SPDX-License-Identifier: Apache-2.0
// The demo model does what its card says (models/README.md): perplexity on held-out text, recall by
// distance, greedy texts and tokenizer, against testdata/demo.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/scorer.h"
#include "model/weights.h"

namespace kvrm {
namespace {

std::string ReadDemo(const std::string& name) {
  return OrThrow(ReadFile(std::string(KVRM_SOURCE_DIR) + "/testdata/demo/" + name, 1u << 22));
}

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

std::vector<std::int32_t> Ids(const json::value& list) {
  std::vector<std::int32_t> ids;
  for (const json::value& id : list.as_array()) {
    ids.push_back(static_cast<std::int32_t>(id.as_int64()));
  }
  return ids;
}

// Greedy continuations of all prompts, decoded together.
std::vector<std::vector<std::int32_t>> Continue(
    const std::vector<std::vector<std::int32_t>>& prompts,
    const std::vector<std::uint32_t>& num_tokens, const std::string& kernels) {
  const SystemClock clock;
  EngineOptions options = {.max_rows = 8,
                           .max_queued = static_cast<std::uint32_t>(prompts.size()),
                           .max_wait_ms = 0,  // a busy machine may take minutes
                           .num_threads = 2,
                           .kernels = kernels};
  if (kernels == "reference") options.kv_dtype = DType::kF32;
  Engine engine(Demo(), options, clock);
  std::map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    index[OrThrow(engine.Submit(
        {.prompt = prompts[i], .max_tokens = num_tokens[i], .sampling = {.temperature = 0.0f}}))] =
        i;
  }
  std::vector<std::vector<std::int32_t>> outputs(prompts.size());
  std::size_t num_ended = 0;
  while (num_ended < prompts.size()) {
    engine.Step();
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      outputs[index.at(event.request)].push_back(event.token);
      if (event.finish != FinishReason::kNone) ++num_ended;
    }
  }
  return outputs;
}

TEST(DemoModel, TokenizerGivesTheIdsItWasTrainedWith) {
  const json::value vectors = OrThrow(ParseJson(ReadDemo("tokenizer.json")));
  EXPECT_GE(vectors.as_array().size(), 20u);
  for (const json::value& vector : vectors.as_array()) {
    const json::object& fields = vector.as_object();
    const std::string_view text = fields.at("text").as_string();
    const json::value* special = fields.if_contains("special");
    const bool is_special = special != nullptr && special->is_bool() && special->as_bool();
    EXPECT_EQ(
        Demo().tokenizer().Encode(text, {.add_special = is_special, .parse_special = is_special}),
        Ids(fields.at("ids")))
        << text;
  }
}

TEST(DemoModel, GreedyTextsAreThoseOfTheTrainersOwnForwardPass) {
  const json::value goldens = OrThrow(ParseJson(ReadDemo("golden.json")));
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::uint32_t> lengths;
  for (const json::value& golden : goldens.as_array()) {
    prompts.push_back(Ids(golden.at("prompt_ids")));
    lengths.push_back(static_cast<std::uint32_t>(golden.at("ids").as_array().size()));
  }
  const std::vector<std::vector<std::int32_t>> outputs = Continue(prompts, lengths, "reference");
  std::size_t num_compared = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const json::value& golden = goldens.as_array()[i];
    const std::vector<std::int32_t> expected = Ids(golden.at("ids"));
    for (std::size_t t = 0; t < expected.size(); ++t) {
      // Two float32 forward passes agree to about 1e-5 of logits of size 20.
      if (golden.at("margins").as_array()[t].as_double() < 1e-3) break;
      EXPECT_EQ(outputs[i][t], expected[t]) << i << ' ' << t;
      ++num_compared;
    }
  }
  EXPECT_GE(num_compared, 100u);
}

TEST(DemoModel, PerplexityOnHeldOutTextIsThatOfItsCard) {
  const json::value figures = OrThrow(ParseJson(ReadDemo("figures.json")));
  const auto window = static_cast<std::size_t>(figures.at("window").as_int64());
  const std::vector<std::int32_t> tokens =
      Demo().tokenizer().Encode(ReadDemo("heldout.txt"), {.add_special = true});
  EXPECT_EQ(tokens.size(), static_cast<std::size_t>(figures.at("heldout_tokens").as_int64()));
  Scorer scorer(Demo(), {.max_context = static_cast<std::uint32_t>(window), .num_threads = 2});
  double sum = 0.0;
  std::int64_t count = 0;
  for (std::size_t begin = 0; begin < tokens.size(); begin += window) {
    const std::span<const std::int32_t> part =
        std::span(tokens).subspan(begin, std::min(window, tokens.size() - begin));
    scorer.Score(part, [&](std::uint32_t position, std::span<const float> logits) {
      if (position + 1 == part.size()) return;
      sum -= static_cast<double>(LogProb(logits, part[position + 1]));
      ++count;
    });
  }
  EXPECT_EQ(count, figures.at("heldout_scored").as_int64());
  const double perplexity = std::exp(sum / static_cast<double>(count));
  const double expected = figures.at("heldout_perplexity").as_double();
  std::printf("perplexity %.5f, card %.5f\n", perplexity, expected);
  // A float16 cache moves single logits by some 1e-3 and the mean far less.
  EXPECT_NEAR(perplexity, expected, 1e-3 * expected);
}

struct RecallCase {
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> answer;
  std::string bucket;
};

std::vector<RecallCase> RecallCases() {
  const std::string lines = ReadDemo("recall.jsonl");
  std::vector<RecallCase> cases;
  for (std::size_t begin = 0; begin < lines.size();) {
    const std::size_t end = std::min(lines.find('\n', begin), lines.size());
    const json::value line = OrThrow(ParseJson(std::string_view(lines).substr(begin, end - begin)));
    begin = end + 1;
    RecallCase c;
    c.prompt = Demo().tokenizer().Encode(std::string_view(line.at("prompt").as_string()),
                                         {.add_special = true});
    c.answer = Ids(line.at("answer_ids"));
    EXPECT_EQ(c.prompt.size(), static_cast<std::size_t>(line.at("prompt_tokens").as_int64()));
    const std::int64_t distance = line.at("distance").as_int64();
    c.bucket = distance < 128    ? "0-128"
               : distance < 256  ? "128-256"
               : distance < 512  ? "256-512"
               : distance < 1024 ? "512-1024"
                                 : "1024-1900";
    cases.push_back(std::move(c));
  }
  return cases;
}

TEST(DemoModel, RecallByDistanceIsThatOfItsCard) {
  const json::value figures = OrThrow(ParseJson(ReadDemo("figures.json")));
  const std::vector<RecallCase> cases = RecallCases();
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::uint32_t> lengths;
  for (const RecallCase& c : cases) {
    prompts.push_back(c.prompt);
    lengths.push_back(static_cast<std::uint32_t>(c.answer.size()));
  }
  const std::vector<std::vector<std::int32_t>> outputs = Continue(prompts, lengths, "");
  std::map<std::string, int> num_right;
  std::map<std::string, int> num_cases;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    ++num_cases[cases[i].bucket];
    if (outputs[i] == cases[i].answer) ++num_right[cases[i].bucket];
  }
  for (const auto& figure : figures.at("recall").as_object()) {
    const std::string bucket(figure.key());
    const int total = num_cases[bucket];
    EXPECT_EQ(total, figures.at("recall_cases").at(bucket).as_int64()) << bucket;
    const double recall = static_cast<double>(num_right[bucket]) / total;
    std::printf("recall at %-10s %5.1f %%, card %5.1f %%\n", bucket.c_str(), 100.0 * recall,
                100.0 * figure.value().to_number<double>());
    // One case of a bucket may fall the other way: the card's figure is of float32 throughout.
    EXPECT_NEAR(recall, figure.value().to_number<double>(), 1.01 / total) << bucket;
  }
}

}  // namespace
}  // namespace kvrm
