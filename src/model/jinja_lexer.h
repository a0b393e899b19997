// SPDX-License-Identifier: Apache-2.0
// The lexer of the template language: source text to tokens, whitespace control applied.
//
// It follows Jinja2 with trim_blocks and lstrip_blocks on and keep_trailing_newline off, which is
// how chat templates are written: a newline after a block is dropped, blanks before one are
// dropped, and one newline at the end of the source does not count. Comments and raw blocks are
// resolved here and leave no token of their own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvrm::jinja {

enum class TokenKind : std::uint8_t {
  kData,           // text: template text
  kVariableBegin,  // {{
  kVariableEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,    // text: unescaped
  kInteger,   // integer
  kFloat,     // real
  kOperator,  // text: the operator as written
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::uint32_t line = 1;
  std::string text;
  std::int64_t integer = 0;
  double real = 0;
};

// The last token is kEnd. Errors begin with "line N: ".
Result<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace kvrm::jinja
