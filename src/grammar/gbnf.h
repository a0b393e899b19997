// SPDX-License-Identifier: Apache-2.0
// GBNF: grammars as llama.cpp writes them.
//
//   root  ::= "yes" | list        # `root` is where a text begins
//   list  ::= item ("," ws item){0,9}
//   item  ::= [a-zA-Z_] [^\x00-\x1F"\\]* | "\u00e9" .
//
// Literals and classes know \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH. A rule ends with its line;
// within parentheses and behind | and ::= it goes on. Refused by name: tokens (<...>).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "grammar/ast.h"

namespace kvrm::grammar {

constexpr std::size_t kMaxGbnfBytes = 64u << 10;
constexpr std::uint32_t kMaxGbnfNesting = 64;
constexpr std::uint32_t kMaxGbnfRules = 4096;
constexpr std::uint32_t kMaxGbnfRepeat = 2000;  // llama.cpp's own limit

// Defines ast.root. Errors name the construct and the line.
Status ParseGbnf(std::string_view source, Ast& ast);

}  // namespace kvrm::grammar
