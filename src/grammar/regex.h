// SPDX-License-Identifier: Apache-2.0
// Regex: regular expressions, without what no automaton can do.
//
// Literals, ., classes with ranges and \d \w \s \D \W \S, groups (plain, (?:...), named), |, * + ?
// {m} {m,} {m,n} and their lazy forms, which match the same texts; \t \n \r \f \v \0 \xHH \x{H...}
// \uHHHH \cX. ^ and $ at the ends of a whole alternative. Refused by name: back references,
// look-around, word boundaries, flags, \p classes, possessive repeats. Texts are UTF-8; . is
// anything but the end of a line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "grammar/ast.h"

namespace kvrm::grammar {

constexpr std::size_t kMaxRegexBytes = 1024;
constexpr std::uint32_t kMaxRegexRepeat = 256;
constexpr std::uint32_t kMaxRegexNesting = 64;

enum class RegexUse : std::uint8_t {
  kWholeText,   // ^ and $ are understood
  kJsonString,  // a `pattern`: may match anywhere in the content of a string of JSON, which is
                // spelled with JSON's escapes
};

// Errors name the construct and the byte.
Result<NodeId> ParseRegex(std::string_view source, RegexUse use, Ast& ast);

// One character in a string of JSON, escapes included, except those for halves of surrogate pairs.
NodeId JsonChar(Ast& ast);
// Characters that may stand in such a string as they are.
CodePointSet PlainJsonChars();

}  // namespace kvrm::grammar
