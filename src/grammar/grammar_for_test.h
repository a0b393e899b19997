// SPDX-License-Identifier: Apache-2.0
// Grammars in tests: compile, and ask which texts match.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "grammar/grammar.h"
#include "grammar/matcher.h"

namespace kvrm {

inline SharedGrammar Compiled(GrammarKind kind, std::string text) {
  Result<SharedGrammar> grammar = Grammar::Compile({.kind = kind, .text = std::move(text)});
  EXPECT_TRUE(grammar.has_value()) << (grammar ? "" : grammar.error().message);
  return grammar ? *grammar : nullptr;
}

inline std::string CompileError(GrammarKind kind, std::string text) {
  const Result<SharedGrammar> grammar = Grammar::Compile({.kind = kind, .text = std::move(text)});
  return grammar ? "" : grammar.error().message;
}

// Byte by byte, so that every split of a text into tokens is covered by one of its bytes.
inline bool Matches(const SharedGrammar& grammar, std::string_view text) {
  if (grammar == nullptr) return false;
  GrammarMatcher matcher(grammar);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!matcher.Accept(text.substr(i, 1))) return false;
  }
  GrammarMatcher whole(grammar);
  EXPECT_TRUE(whole.Accept(text)) << text;
  EXPECT_EQ(whole.IsComplete(), matcher.IsComplete()) << text;
  return matcher.IsComplete();
}

}  // namespace kvrm
