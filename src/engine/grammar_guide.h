// SPDX-License-Identifier: Apache-2.0
// GrammarGuide: the engine's side of structured output: one vocabulary, one buffer for a mask.
//
// An output with a grammar may end by a stop id exactly where its text is complete; everywhere else
// stop ids are masked, ordinary tokens among them too, since their text would be cut off.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "grammar/mask_builder.h"
#include "grammar/matcher.h"
#include "grammar/token_trie.h"

namespace kvrm {

class GrammarGuide {
 public:
  // `bytes_of`: as TokenTrie; empty: this engine has no grammars, and nothing is reserved.
  GrammarGuide(std::uint32_t vocab_size,
               const std::function<std::string(std::int32_t id)>& bytes_of,
               std::size_t cache_bytes);

  bool available() const noexcept { return trie_ != nullptr; }
  // Requires: available(). The mask of the next token; empty where the grammar is too ambiguous to
  // go on. Valid until the next call.
  std::span<const std::uint32_t> Allowed(GrammarMatcher& matcher,
                                         std::span<const std::int32_t> stop_ids) noexcept;
  // Goes on by a token that was allowed and is no stop id. False: there is no room to go on.
  bool Accept(GrammarMatcher& matcher, std::int32_t token) const noexcept {
    return matcher.Accept(trie_->Bytes(token));
  }
  std::size_t reserved_bytes() const noexcept;

 private:
  std::unique_ptr<const TokenTrie> trie_;
  std::unique_ptr<MaskBuilder> builder_;
  std::vector<std::uint32_t> mask_;  // [NumMaskWords(vocab_size)]
};

}  // namespace kvrm
