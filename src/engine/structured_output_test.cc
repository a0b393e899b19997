// SPDX-License-Identifier: Apache-2.0
// Structured output is always valid: random schemas and grammars under random logits in the demo
// model's vocabulary, and the engine with the demo model itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/grammar_guide.h"
#include "grammar/schemas_for_test.h"
#include "model/weights.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kMaxTokens = 4000;

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

GrammarGuide DemoGuide() {
  return GrammarGuide(
      Demo().tokenizer().num_tokens(),
      [](std::int32_t id) { return Demo().tokenizer().TokenBytes(id); }, std::size_t{8} << 20);
}

bool IsAllowed(std::span<const std::uint32_t> mask, std::int32_t id) {
  const auto i = static_cast<std::uint32_t>(id);
  return (mask[i / 32] >> i % 32 & 1u) != 0;
}

// Draws evenly from what is allowed. Texts are free to go on for ever, so after a while what closes
// is preferred.
class RandomWriter {
 public:
  explicit RandomWriter(std::uint64_t seed) : guide_(DemoGuide()), rng_(seed, "writer") {
    for (const char* text : {"\"", "}", "]", "1", "n", "a", "b", "c"})
      closers_.push_back(Demo().tokenizer().FindToken(text));
  }

  // The text, or what went wrong.
  Result<std::string> Write(const SharedGrammar& grammar) {
    GrammarMatcher matcher(grammar);
    std::string text;
    for (std::uint32_t i = 0; i < kMaxTokens; ++i) {
      const std::span<const std::uint32_t> mask =
          guide_.Allowed(matcher, Demo().tokenizer().stop_ids());
      if (mask.empty()) return Error{ErrorCode::kTooLarge, "too ambiguous behind " + text};
      const std::int32_t token = Draw(mask, i > 60);
      if (token < 0) return Error{ErrorCode::kInternal, "nothing allowed behind " + text};
      if (IsStop(token)) {
        EXPECT_TRUE(matcher.IsComplete()) << text;
        return text;
      }
      EXPECT_FALSE(Demo().tokenizer().IsControl(token));
      if (!guide_.Accept(matcher, token))
        return Error{ErrorCode::kInternal, "an allowed token does not fit behind " + text};
      text += Demo().tokenizer().TokenBytes(token);
    }
    return Error{ErrorCode::kTooLarge, "no end: " + text};
  }

 private:
  static bool IsStop(std::int32_t token) {
    const std::vector<std::int32_t>& stops = Demo().tokenizer().stop_ids();
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  }

  std::int32_t Draw(std::span<const std::uint32_t> mask, bool close) {
    std::vector<std::int32_t> allowed;
    for (std::uint32_t id = 0; id < Demo().tokenizer().num_tokens(); ++id)
      if (IsAllowed(mask, static_cast<std::int32_t>(id)))
        allowed.push_back(static_cast<std::int32_t>(id));
    if (allowed.empty()) return -1;
    if (close) {
      for (const std::int32_t stop : Demo().tokenizer().stop_ids())
        if (IsAllowed(mask, stop)) return stop;
      std::vector<std::int32_t> closers;
      for (const std::int32_t closer : closers_)
        if (closer >= 0 && IsAllowed(mask, closer)) closers.push_back(closer);
      // A quote ends a string at once; the letters are for the pattern that looks for some.
      if (!closers.empty() && closers[0] == closers_[0]) return closers[0];
      if (!closers.empty()) return closers[rng_.Below(closers.size())];
    }
    return allowed[rng_.Below(allowed.size())];
  }

  GrammarGuide guide_;
  Rng rng_;
  std::vector<std::int32_t> closers_;
};

TEST(StructuredOutput, AThousandRandomSchemasGiveValidJson) {
  Rng rng(20, "schemas");
  RandomWriter writer(21);
  std::uint64_t num_bytes = 0;
  for (int i = 0; i < 1000; ++i) {
    const json::value schema = RandomSchema(rng);
    const std::string text = SchemaText(schema);
    const Result<SharedGrammar> grammar =
        Grammar::Compile({.kind = GrammarKind::kJsonSchema, .text = text});
    ASSERT_TRUE(grammar.has_value()) << text << "\n" << grammar.error().message;
    const Result<std::string> output = writer.Write(grammar.value());
    ASSERT_TRUE(output.has_value()) << text << "\n" << output.error().message;
    const Result<json::value> value = ParseJson(output.value());
    ASSERT_TRUE(value.has_value()) << text << "\n" << output.value();
    ASSERT_TRUE(IsValid(schema, schema, value.value())) << text << "\n" << output.value();
    num_bytes += output.value().size();
  }
  EXPECT_GT(num_bytes, 50'000u);
}

TEST(StructuredOutput, AnyObjectIsValidJson) {
  RandomWriter writer(22);
  const SharedGrammar grammar = OrThrow(Grammar::Compile({.kind = GrammarKind::kJsonObject}));
  for (int i = 0; i < 300; ++i) {
    const Result<std::string> output = writer.Write(grammar);
    ASSERT_TRUE(output.has_value()) << output.error().message;
    const Result<json::value> value = ParseJson(output.value());
    ASSERT_TRUE(value.has_value() && value.value().is_object()) << output.value();
  }
}

// What a request got.
struct Got {
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
  std::string Text() const {
    std::string text;
    for (const std::int32_t token : tokens)
      text += Demo().tokenizer().TokenBytes(token);
    return text;
  }
};

std::map<RequestId, Got> RunAll(Engine& engine, std::size_t num_outputs) {
  std::map<RequestId, Got> outputs;
  std::size_t num_ended = 0;
  for (int idle = 0; num_ended < num_outputs && idle < 100; ++idle) {
    if (engine.Step()) idle = 0;
    TokenEvent event;
    while (engine.Poll({&event, 1}) == 1) {
      Got& got = outputs[event.request];
      if (event.finish != FinishReason::kStop && event.token >= 0)
        got.tokens.push_back(event.token);
      got.finish = event.finish;
      num_ended += event.finish != FinishReason::kNone;
    }
  }
  return outputs;
}

constexpr const char* kSchema =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":12},
        "size":{"type":"integer","minimum":1,"maximum":99},"kind":{"enum":["a","b"]}},
        "required":["name","size"],"additionalProperties":false})";

Request SchemaRequest(std::uint64_t seed) {
  return {.prompt = Demo().tokenizer().Encode("A thing: ", {}),
          .max_tokens = 200,
          .sampling = {.seed = seed},
          .grammar = {.kind = GrammarKind::kJsonSchema, .text = kSchema},
          .stop_ids = Demo().tokenizer().stop_ids()};
}

void ExpectValid(const Got& got) {
  EXPECT_EQ(got.finish, FinishReason::kStop) << got.Text();
  const Result<json::value> value = ParseJson(got.Text());
  ASSERT_TRUE(value.has_value()) << got.Text();
  const json::value schema = OrThrow(ParseJson(kSchema));
  EXPECT_TRUE(IsValid(schema, schema, value.value())) << got.Text();
}

TEST(StructuredOutput, TheEngineFollowsASchemaInEverySample) {
  const SystemClock clock;
  Engine engine(Demo(), {.max_rows = 8, .max_context = 512, .num_threads = 2}, clock);
  Request many = SchemaRequest(5);
  many.num_samples = 4;
  many.sampling.temperature = 1.5f;
  ASSERT_TRUE(engine.Submit(std::move(many)).has_value());
  for (std::uint64_t seed = 50; seed < 56; ++seed)
    ASSERT_TRUE(engine.Submit(SchemaRequest(seed)).has_value());
  const std::map<RequestId, Got> outputs = RunAll(engine, 10);
  ASSERT_EQ(outputs.size(), 10u);
  for (const auto& [id, got] : outputs)
    ExpectValid(got);
}

// A pool for less than two of the rows: sequences are preempted and go on where they were.
TEST(StructuredOutput, PreemptionChangesNothing) {
  const SystemClock clock;
  std::vector<std::map<RequestId, Got>> runs;
  for (const std::uint64_t kv_tokens : {4096u, 256u}) {
    Engine engine(Demo(),
                  {.max_rows = 8, .max_context = 256, .kv_tokens = kv_tokens, .num_threads = 2},
                  clock);
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      Request request = SchemaRequest(seed);
      request.prompt = Demo().tokenizer().Encode(
          "There was once a thing of which many people said that it was very large: ", {});
      ASSERT_TRUE(engine.Submit(std::move(request)).has_value());
    }
    runs.push_back(RunAll(engine, 8));
    const bool is_small = kv_tokens == 256;
    EXPECT_EQ(engine.stats().num_preemptions > 0, is_small);
  }
  ASSERT_EQ(runs[0].size(), 8u);
  for (const auto& [id, got] : runs[0]) {
    ExpectValid(got);
    EXPECT_EQ(got.tokens, runs[1].at(id).tokens);
  }
}

TEST(StructuredOutput, WhatCannotBeServedIsRefusedOrEndsAlone) {
  const SystemClock clock;
  Engine engine(Demo(), {.max_rows = 4, .max_context = 256, .num_threads = 1}, clock);
  Request no_stop = SchemaRequest(1);
  no_stop.stop_ids.clear();
  EXPECT_EQ(engine.Submit(std::move(no_stop)).error().message,
            "a grammar needs stop ids to end the output");
  Request wrong = SchemaRequest(1);
  wrong.grammar = {.kind = GrammarKind::kGbnf, .text = "root ::= root"};
  EXPECT_EQ(engine.Submit(std::move(wrong)).error().message,
            "rule 'root' calls itself before it matches anything (left recursion)");
  // Its first character is banned, so nothing is left.
  Request banned = SchemaRequest(2);
  for (std::uint32_t id = 0; id < Demo().tokenizer().num_tokens(); ++id) {
    const auto token = static_cast<std::int32_t>(id);
    if (Demo().tokenizer().TokenBytes(token).substr(0, 1) == "{")
      banned.rules.bias.push_back(
          {.token = token, .bias = -std::numeric_limits<float>::infinity()});
  }
  const RequestId dead = OrThrow(engine.Submit(std::move(banned)));
  const RequestId good = OrThrow(engine.Submit(SchemaRequest(3)));
  const std::map<RequestId, Got> outputs = RunAll(engine, 2);
  EXPECT_EQ(outputs.at(dead).finish, FinishReason::kNothingAllowed);
  EXPECT_TRUE(outputs.at(dead).tokens.empty());
  ExpectValid(outputs.at(good));

  Engine without(
      Demo(), {.max_rows = 1, .max_context = 64, .num_threads = 1, .mask_cache_bytes = 0}, clock);
  EXPECT_EQ(without.Submit(SchemaRequest(1)).error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace kvrm
