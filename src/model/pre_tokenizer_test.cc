// SPDX-License-Identifier: Apache-2.0
#include "model/pre_tokenizer.h"

#include <gtest/gtest.h>

namespace kvrm {
namespace {

std::vector<std::string> Pieces(const PreTokenizer& pre_tokenizer, std::string_view text) {
  std::vector<TextSpan> spans;
  pre_tokenizer.Split(text, spans);
  std::vector<std::string> pieces;
  for (const TextSpan span : spans) {
    pieces.emplace_back(text.substr(span.begin, span.end - span.begin));
  }
  return pieces;
}

std::vector<std::string> Named(std::string_view name, std::string_view text) {
  return Pieces(OrThrow(PreTokenizer::FromName(name)), text);
}

using Strings = std::vector<std::string>;

TEST(PreTokenizer, NamedSplits) {
  EXPECT_EQ(Named("gpt-2", "I'm  12 ok!\n\n"),
            (Strings{"I", "'m", " ", " 12", " ok", "!", "\n\n"}));
  EXPECT_EQ(Named("llama-bpe", "12345'LL x\n y"), (Strings{"123", "45", "'LL", " x", "\n", " y"}));
  EXPECT_EQ(Named("qwen2", "123!!\n"), (Strings{"1", "2", "3", "!!\n"}));
  EXPECT_EQ(Named("starcoder", "a12"), (Strings{"a", "1", "2"}));
  EXPECT_EQ(Named("falcon", "1234.5"), (Strings{"123", "4", ".", "5"}));
  EXPECT_EQ(Named("default", "1234"), (Strings{"123", "4"}));
  EXPECT_EQ(Named("deepseek-llm", "ab  \ncd  "), (Strings{"ab", "  ", "\n", "cd", "  "}));
  EXPECT_EQ(Named("deepseek-v3", "1234 .x"), (Strings{"123", "4", " .", "x"}));
  EXPECT_EQ(Named("gpt-4o", "HelloWorld's"), (Strings{"Hello", "World's"}));
  EXPECT_EQ(Named("tekken", "HelloWORLD12"), (Strings{"Hello", "WORLD", "1", "2"}));
  EXPECT_TRUE(Named("gpt-2", "").empty());
}

TEST(PreTokenizer, WhiteSpaceIsUnicodes) {
  // U+3000 is white space; U+180E (PCRE2's \s takes it) is not and joins other signs.
  EXPECT_EQ(Named("gpt-2", "a\xE3\x80\x80!"), (Strings{"a", "\xE3\x80\x80", "!"}));
  EXPECT_EQ(Named("gpt-2", "a\xE1\xA0\x8E!"), (Strings{"a", "\xE1\xA0\x8E!"}));
}

TEST(PreTokenizer, InvalidBytesAreKept) {
  EXPECT_EQ(Named("gpt-2", "a\xFF\xC3 b"), (Strings{"a", "\xFF\xC3", " b"}));
}

TEST(PreTokenizer, ExpressionsThatExplodeLeaveOnePiece) {
  PreTokenizer pre_tokenizer;
  ASSERT_TRUE(pre_tokenizer.AddStage("(?:a+)+b", SplitBehavior::kIsolated, false, "field"));
  const std::string text(5000, 'a');
  EXPECT_EQ(Pieces(pre_tokenizer, text), (Strings{text}));
}

TEST(PreTokenizer, EmptyMatchesMakeNoPieces) {
  PreTokenizer pre_tokenizer;
  ASSERT_TRUE(pre_tokenizer.AddStage("x*", SplitBehavior::kIsolated, false, "field"));
  EXPECT_EQ(Pieces(pre_tokenizer, "axxb\xC3\xA9"), (Strings{"a", "xx", "b\xC3\xA9"}));
}

}  // namespace
}  // namespace kvrm
