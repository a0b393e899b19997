// SPDX-License-Identifier: Apache-2.0
// What is made to cost: each ends in bounds, by an error or by a grammar, and the bounds are counts
// of steps and bytes and not times.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/counted_new_for_test.h"
#include "base/rng.h"
#include "grammar/budget.h"
#include "grammar/gbnf.h"
#include "grammar/grammar_cache.h"
#include "grammar/grammar_for_test.h"
#include "grammar/json_schema.h"
#include "grammar/regex.h"

namespace kvrm {
namespace {

std::string Times(std::string_view text, std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i)
    out += text;
  return out;
}

struct Hostile {
  const char* name;
  GrammarKind kind;
  std::string text;
  const char* error;  // a part of it; "": compiles
};

std::string ManyRules(int count, const std::string& body) {
  std::string text = "root ::= r0\n";
  for (int i = 0; i < count; ++i)
    text += "r" + std::to_string(i) + " ::= " + body + " r" + std::to_string(i + 1) + "\n";
  return text + "r" + std::to_string(count) + " ::= \"x\"\n";
}

std::string ShortRules(int count) {
  std::string text = "root::=r0\n";
  for (int i = 0; i < count; ++i)
    text += "r" + std::to_string(i) + "::=\"\"\n";
  return text;
}

std::string Properties(int count, const std::string& value) {
  std::string text = R"({"type":"object","properties":{)";
  for (int i = 0; i < count; ++i)
    text += (i ? ",\"p" : "\"p") + std::to_string(i) + "\":" + value;
  return text + "}";
}

std::vector<Hostile> Cases() {
  const auto kGbnf = GrammarKind::kGbnf;
  const auto kSchema = GrammarKind::kJsonSchema;
  const auto kRegex = GrammarKind::kRegex;
  std::string doubling = R"({"$defs":{"d0":{"type":"string"})";
  for (int i = 1; i < 40; ++i) {
    const std::string before = R"({"$ref":"#/$defs/d)" + std::to_string(i - 1) + "\"}";
    doubling += ",\"d" + std::to_string(i) + R"(":{"allOf":[)" + before + "," + before + "]}";
  }
  doubling += R"(},"$ref":"#/$defs/d39"})";
  std::string wide = R"({"enum":[)";
  for (int i = 0; i < 5000; ++i)
    wide += (i ? "," : "") + std::to_string(Mix64(static_cast<std::uint64_t>(i)) % 1000000000);
  wide += "]}";
  return {
      {"grammar too long", kGbnf, "root ::= \"" + Times("a", grammar::kMaxGbnfBytes) + "\"",
       "bytes; the limit is"},
      {"60,000 parentheses", kGbnf, "root ::= " + Times("(", 60000), "nested deeper than 64"},
      {"5,000 rules", kGbnf, ShortRules(5000), "more than 4096 rules"},
      {"a chain of rules", kGbnf, ManyRules(2000, "\"a\""), ""},
      {"a chain of optional rules", kGbnf, ManyRules(1500, "\"a\"?"), ""},
      {"nested repeats", kGbnf, "root ::= (((\"a\"{1,1000}){1,1000}){1,1000}){1,1000}", ""},
      {"nested optional repeats", kGbnf, "root ::= (((\"a\"{0,1000}){0,1000}){0,1000}){0,1000}",
       "too ambiguous"},
      {"repeats of repeats", kGbnf, "root ::= \"a\"{2000}{2000}{2000}{2000}", ""},
      {"left recursion through empty rules", kGbnf, "root ::= e e e root | \"x\"\ne ::= \"y\"?",
       "left recursion"},
      {"exponential subsets", kRegex, "(a|b)*a(a|b){60}", "the grammar"},
      {"exponential subsets in rules", kGbnf, "root ::= [ab]* \"a\" [ab]{60}", "the grammar"},
      {"regex too long", kRegex, Times("a", grammar::kMaxRegexBytes + 1), "bytes; the limit is"},
      {"regex repeat", kRegex, "a{257}", "a repeat of more than 256"},
      {"nested regex repeats", kRegex, "((((a{256}){256}){256}){256}){256}", ""},
      {"regex groups", kRegex, Times("(", 300) + Times(")", 300), "nested deeper than 64"},
      {"back reference", kRegex, "(a)\\1", "back references"},
      {"catastrophic backtracking", kRegex, "(a+)+(a+)+$", ""},
      {"any character 256 times 4", kRegex, ".{256}.{256}.{256}.{256}", ""},
      {"schema too long", kSchema, "{\"title\":\"" + Times("a", 70000) + "\"}",
       "bytes; the limit is"},
      {"deep schema", kSchema, Times(R"({"items":)", 40) + "{}" + Times("}", 40), "nested deeper"},
      {"deep JSON", kSchema, Times("[", 60000), "invalid JSON"},
      {"many schemas", kSchema, Times(R"({"anyOf":[)", 1) + Times("{},", 20000) + "{}]}",
       "more than 4096 schemas"},
      {"doubling references", kSchema, doubling, "nested deeper"},
      {"a reference to itself", kSchema, R"({"allOf":[{"$ref":"#"}]})", "refer to themselves"},
      {"a property of itself", kSchema, R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})",
       "cannot end"},
      {"an enum of 5,000", kSchema, wide, ""},
      {"3,000 optional properties", kSchema, Properties(3000, "{}") + "}",
       "the grammar takes more"},
      {"700 optional properties", kSchema, Properties(700, "{}") + "}", ""},
      {"long strings in many properties", kSchema,
       Properties(500, R"({"maxLength":1000000})") + "}", ""},
      {"bounds in many properties", kSchema,
       Properties(500, R"({"minimum":-123456789,"maximum":98765432123})") + "}", ""},
      {"additional beside many", kSchema,
       Properties(500, "{}") + R"(,"additionalProperties":{"type":"null"}})", ""},
      {"minItems", kSchema, R"({"items":{"type":"object"},"minItems":1000000})", "more than 16384"},
      {"patterns in many properties", kSchema,
       Properties(400, R"({"pattern":"^(a|b)*a(a|b){12}$"})") + "}", "the grammar"},
  };
}

TEST(Hostile, EndsWithinStepsAndBytes) {
  for (const Hostile& hostile : Cases()) {
    SCOPED_TRACE(hostile.name);
    CountedNew& counted = ThreadNew();
    const std::int64_t live = counted.live_bytes;
    counted.peak_bytes = live;
    const Result<SharedGrammar> grammar =
        Grammar::Compile({.kind = hostile.kind, .text = hostile.text});
    const std::int64_t peak = counted.peak_bytes - live;
    EXPECT_LT(peak, std::int64_t{32} << 20);
    if (grammar) {
      EXPECT_STREQ(hostile.error, "");
      EXPECT_LE(grammar.value()->compile_work(), grammar::kMaxCompileWork);
      continue;
    }
    EXPECT_NE(*hostile.error, '\0') << grammar.error().message;
    EXPECT_NE(grammar.error().message.find(hostile.error), std::string::npos)
        << grammar.error().message;
  }
}

TEST(GrammarCache, KeepsWhatWasAskedForLately) {
  const auto spec = [](int i) {
    return GrammarSpec{.kind = GrammarKind::kRegex, .text = "a{" + std::to_string(i) + "}"};
  };
  GrammarCache cache(20'000);
  const SharedGrammar first = OrThrow(cache.Get(spec(1)));
  EXPECT_EQ(OrThrow(cache.Get(spec(1))), first);
  EXPECT_EQ(cache.num_hits(), 1u);
  for (int i = 2; i < 60; ++i) {
    EXPECT_TRUE(cache.Get(spec(i)).has_value());
    EXPECT_TRUE(cache.Get(spec(1)).has_value());
    EXPECT_LE(cache.bytes(), 20'000u);
  }
  EXPECT_LT(cache.size(), 50u);
  EXPECT_EQ(OrThrow(cache.Get(spec(1))), first);
  EXPECT_NE(OrThrow(cache.Get({.kind = GrammarKind::kGbnf, .text = "root ::= \"a\""})), first);
  EXPECT_FALSE(cache.Get({.kind = GrammarKind::kRegex, .text = "("}).has_value());
}

}  // namespace
}  // namespace kvrm
