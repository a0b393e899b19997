// SPDX-License-Identifier: Apache-2.0
// Masks beside what asking for each token alone gives.
#include "grammar/mask_builder.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "base/counted_new_for_test.h"
#include "base/rng.h"
#include "grammar/grammar_for_test.h"

namespace kvrm {
namespace {

bool IsAllowed(const std::vector<std::uint32_t>& mask, std::int32_t id) {
  const auto i = static_cast<std::uint32_t>(id);
  return (mask[i / 32] >> i % 32 & 1u) != 0;
}

// All single bytes, pieces of JSON, words, and cuts through UTF-8. Token 0 has no text.
std::vector<std::string> SmallVocabulary(Rng& rng) {
  std::vector<std::string> tokens = {""};
  for (int byte = 0; byte < 256; ++byte)
    tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* piece : {"\"",
                            "\",",
                            "\", \"",
                            "\":",
                            "\": ",
                            "\":\"",
                            "{\"",
                            "[{\"",
                            "}}",
                            "}]",
                            "\"}",
                            "\"}]}",
                            "[[",
                            "[[[[",
                            "]]",
                            "\\n",
                            "\\\"",
                            "\\u00",
                            "e9",
                            "true",
                            "false",
                            "null",
                            "tru",
                            "123",
                            "0.5",
                            "-1",
                            "e+",
                            "\n\n",
                            "\n  ",
                            "   ",
                            "\xC3\xA9",
                            "\xA9",
                            "\xE2\x82",
                            "\x82\xAC",
                            "\xF0\x9F\x98\x80",
                            "caf\xC3\xA9\"",
                            "a\": [",
                            "x\", \"y\": {\"",
                            "}, {"})
    tokens.emplace_back(piece);
  const std::string letters = "abcxyz01 \",:{}[]-\\";
  while (tokens.size() < 700) {
    std::string token;
    const std::uint64_t length = rng.Between(2, 7);
    for (std::uint64_t i = 0; i < length; ++i)
      token += letters[rng.Below(letters.size())];
    tokens.push_back(token);
  }
  return tokens;
}

const std::vector<GrammarSpec>& Specs() {
  static const std::vector<GrammarSpec> specs = {
      {.kind = GrammarKind::kJsonObject},
      {.kind = GrammarKind::kRegex, .text = "[a-c]{3,90}(x|yz)*[0-9]+"},
      {.kind = GrammarKind::kRegex, .text = "(a|ab|abc|[a-z]{2})*\"?"},
      {.kind = GrammarKind::kGbnf, .text = "root ::= \"[\" root? \"]\" | [a-z \\\\,:-]+ \"x\""},
      {.kind = GrammarKind::kGbnf,
       .text = "root ::= v (\",\" v)*\nv ::= s | \"{\" s \":\" v \"}\" | \"[\" v? \"]\"\n"
               "s ::= \"\\\"\" [^\"\\\\]* \"\\\"\" | \"\\\"\" [a-c]{70,80} \"\\\"\""},
      {.kind = GrammarKind::kJsonSchema,
       .text = R"({"type":"object","properties":{"a":{"type":"string","maxLength":90},
                   "b":{"type":"array","items":{"$ref":"#"}},"c":{"type":"number"}}})"},
      {.kind = GrammarKind::kJsonSchema,
       .text = R"({"type":"array","items":{"type":"string","minLength":2,"maxLength":5},
                   "maxItems":300})"}};
  return specs;
}

TEST(MaskBuilder, AllowsExactlyWhatTheMatcherAccepts) {
  Rng rng(7, "masks");
  const std::vector<std::string> tokens = SmallVocabulary(rng);
  const TokenTrie trie(static_cast<std::uint32_t>(tokens.size()),
                       [&](std::int32_t id) { return tokens[static_cast<std::size_t>(id)]; });
  // Few places for masks, so that they are taken from each other.
  MaskBuilder builder(trie, 2000);
  std::vector<std::uint32_t> mask(trie.mask_words());
  for (const GrammarSpec& spec : Specs()) {
    SCOPED_TRACE(spec.text);
    const SharedGrammar grammar = Compiled(spec.kind, spec.text);
    for (int run = 0; run < 4; ++run) {
      GrammarMatcher matcher(grammar);
      for (int step = 0; step < 40; ++step) {
        const MaskOutcome outcome = builder.Build(matcher, mask);
        ASSERT_NE(outcome, MaskOutcome::kTooMuch);
        std::vector<std::int32_t> allowed;
        for (std::int32_t id = 0; id < static_cast<std::int32_t>(tokens.size()); ++id) {
          GrammarMatcher copy = matcher;
          const std::string& text = tokens[static_cast<std::size_t>(id)];
          const bool fits = !text.empty() && copy.Accept(text);
          ASSERT_EQ(IsAllowed(mask, id), fits) << "token '" << text << "' at step " << step;
          if (fits) allowed.push_back(id);
        }
        ASSERT_EQ(outcome == MaskOutcome::kTokens, !allowed.empty());
        ASSERT_TRUE(!allowed.empty() || matcher.IsComplete());
        if (allowed.empty()) break;
        const std::int32_t next = allowed[rng.Below(allowed.size())];
        ASSERT_TRUE(matcher.Accept(trie.Bytes(next)));
      }
    }
  }
  EXPECT_GT(builder.stats().num_cache_hits, 30u);
  EXPECT_GT(builder.stats().num_cache_fills, 10u);
}

TEST(MaskBuilder, NeitherMatcherNorMaskAllocates) {
  Rng rng(3, "masks");
  const std::vector<std::string> tokens = SmallVocabulary(rng);
  const TokenTrie trie(static_cast<std::uint32_t>(tokens.size()),
                       [&](std::int32_t id) { return tokens[static_cast<std::size_t>(id)]; });
  MaskBuilder builder(trie, 1 << 20);
  std::vector<std::uint32_t> mask(trie.mask_words());
  GrammarMatcher matcher(Compiled(GrammarKind::kJsonObject, ""));
  const std::uint64_t before = ThreadNew().num_allocations;
  std::uint32_t num_tokens = 0;
  for (; num_tokens < 500; ++num_tokens) {
    if (builder.Build(matcher, mask) != MaskOutcome::kTokens) break;
    std::int32_t id = static_cast<std::int32_t>(rng.Below(tokens.size()));
    while (!IsAllowed(mask, id))
      id = (id + 1) % static_cast<std::int32_t>(tokens.size());
    ASSERT_TRUE(matcher.Accept(trie.Bytes(id)));
  }
  EXPECT_EQ(ThreadNew().num_allocations, before);
  EXPECT_GT(num_tokens, 5u);
}

// A vocabulary that cannot spell a comma: the mask is empty and the text is not complete.
TEST(MaskBuilder, SaysWhenTheVocabularyCannotGoOn) {
  const std::vector<std::string> tokens = {"a", "b", "ab", "c,"};
  const TokenTrie trie(4, [&](std::int32_t id) { return tokens[static_cast<std::size_t>(id)]; });
  MaskBuilder builder(trie, 0);
  std::vector<std::uint32_t> mask(trie.mask_words());
  GrammarMatcher matcher(Compiled(GrammarKind::kRegex, "ab,c"));
  EXPECT_EQ(builder.Build(matcher, mask), MaskOutcome::kTokens);
  EXPECT_EQ(mask[0], 0b101u);
  ASSERT_TRUE(matcher.Accept("ab"));
  EXPECT_EQ(builder.Build(matcher, mask), MaskOutcome::kNone);
  EXPECT_FALSE(matcher.IsComplete());
}

TEST(MaskBuilder, NestingEndsBeforeTheLimit) {
  const std::vector<std::string> tokens = {"[", "[[[", "]", "1", ",", "{\"a\":"};
  const TokenTrie trie(6, [&](std::int32_t id) { return tokens[static_cast<std::size_t>(id)]; });
  MaskBuilder builder(trie, 1 << 16);
  std::vector<std::uint32_t> mask(trie.mask_words());
  GrammarMatcher matcher(
      Compiled(GrammarKind::kGbnf, "root ::= \"[\" (root | \"1\") \"]\" | \"{\" root \"}\""));
  std::uint32_t num_open = 0;
  while (builder.Build(matcher, mask) == MaskOutcome::kTokens && IsAllowed(mask, 0)) {
    const bool three = IsAllowed(mask, 1);
    ASSERT_TRUE(matcher.Accept(three ? "[[[" : "["));
    num_open += three ? 3 : 1;
  }
  EXPECT_GT(num_open, 100u);
  EXPECT_LE(num_open, grammar::kMaxDepth + 1);
  // There is a way out, and it is the right one.
  ASSERT_TRUE(IsAllowed(mask, 3));
  ASSERT_TRUE(matcher.Accept("1"));
  for (; num_open > 0; --num_open) {
    EXPECT_FALSE(matcher.IsComplete());
    ASSERT_TRUE(matcher.Accept("]"));
  }
  EXPECT_TRUE(matcher.IsFinished());
}

// Each letter may be of either list at every place: sets grow until the room is used up.
TEST(MaskBuilder, AnAmbiguousGrammarEndsWithAnAnswer) {
  const auto spec =
      GrammarSpec{.kind = GrammarKind::kGbnf,
                  .text =
                      "root ::= s\ns ::= \"a\" s \"x\" | \"a\" s \"y\" | \"a\" \"a\" s \"z\" | t\n"
                      "t ::= \"a\" t \"p\" s | \"b\""};
  const Result<SharedGrammar> grammar = Grammar::Compile(spec);
  ASSERT_TRUE(grammar.has_value());
  const TokenTrie trie(2, [](std::int32_t id) { return id == 0 ? "a" : "b"; });
  MaskBuilder builder(trie, 0);
  std::vector<std::uint32_t> mask(1);
  GrammarMatcher matcher(*grammar);
  MaskOutcome outcome = MaskOutcome::kTokens;
  for (int i = 0; i < 300 && outcome == MaskOutcome::kTokens; ++i) {
    outcome = builder.Build(matcher, mask);
    if (outcome != MaskOutcome::kTokens) break;
    ASSERT_TRUE(matcher.Accept(IsAllowed(mask, 0) ? "a" : "b"));
  }
  EXPECT_EQ(outcome, MaskOutcome::kTooMuch);
}

}  // namespace
}  // namespace kvrm
