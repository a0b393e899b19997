// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets of grammars do: bytes before the first 0xFF are compiled, those behind it
// choose tokens that the mask allows, or are read as they are.
//
// Holds whatever the text: compiling ends within its budget; the mask allows exactly what the
// matcher accepts, as long as it has room; where the mask is empty in a vocabulary of all bytes,
// the text is complete.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "grammar/budget.h"
#include "grammar/grammar.h"
#include "grammar/mask_builder.h"
#include "grammar/matcher.h"
#include "grammar/token_trie.h"

namespace kvrm {

inline const TokenTrie& FuzzTrie() {
  static const TokenTrie trie(272, [](std::int32_t id) -> std::string {
    constexpr const char* kPieces[] = {"\"}", "\":", "{\"",    "[[", "]]", "\\u",      "00", "aa",
                                       "ab",  "},",  "\": \"", "12", ".5", "\xC3\xA9", "tr", "ue"};
    if (id < 256) return std::string(1, static_cast<char>(id));
    return kPieces[id - 256];
  });
  return trie;
}

inline void CheckMask(const GrammarMatcher& matcher, std::span<const std::uint32_t> mask) {
  for (std::uint32_t id = 0; id < FuzzTrie().vocab_size(); ++id) {
    GrammarMatcher copy = matcher;
    const bool fits = copy.Accept(FuzzTrie().Bytes(static_cast<std::int32_t>(id)));
    CHECK(copy.overflowed() || fits == ((mask[id / 32] >> id % 32 & 1u) != 0));
  }
}

inline void CompileAndFollow(GrammarKind kind, std::span<const std::uint8_t> data) {
  const auto end = std::find(data.begin(), data.end(), std::uint8_t{0xFF});
  const Result<SharedGrammar> grammar =
      Grammar::Compile({.kind = kind, .text = std::string(data.begin(), end)});
  if (!grammar) {
    CHECK(!grammar.error().message.empty());
    return;
  }
  CHECK(grammar.value()->compile_work() <= grammar::kMaxCompileWork);
  static MaskBuilder builder(FuzzTrie(), 4096);
  std::vector<std::uint32_t> mask(FuzzTrie().mask_words());
  GrammarMatcher matcher(grammar.value());
  std::size_t count = 0;
  for (auto at = end; at != data.end() && count < 64; ++at, ++count) {
    const MaskOutcome outcome = builder.Build(matcher, mask);
    if (outcome == MaskOutcome::kTooMuch) return;
    if (count < 4) CheckMask(matcher, mask);
    if (outcome == MaskOutcome::kNone) {
      CHECK(matcher.IsComplete());
      return;
    }
    std::uint32_t id = *at % FuzzTrie().vocab_size();
    while ((mask[id / 32] >> id % 32 & 1u) == 0)
      id = (id + 1) % FuzzTrie().vocab_size();
    const bool fits = matcher.Accept(FuzzTrie().Bytes(static_cast<std::int32_t>(id)));
    CHECK(fits || matcher.overflowed());
    if (!fits) return;
  }
}

}  // namespace kvrm
