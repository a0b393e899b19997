// SPDX-License-Identifier: Apache-2.0
// PreTokenizer: cuts text into the pieces that byte-level BPE merges within.
//
// A row of stages, each a regular expression applied to the pieces of the one before. Linear in the
// text for the expressions known here by name; an expression from a tokenizer.json is bounded per
// match (kMatchLimit), and text it cannot finish stays one piece. Never fails and loses nothing but
// what a kRemoved stage removes. Immutable, safe to use from many threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvrm {

struct TextSpan {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

// What becomes of the matches of an expression: pieces of their own, nothing, or joined to a
// neighbour. The names are those of tokenizer.json.
enum class SplitBehavior : std::uint8_t {
  kIsolated,
  kRemoved,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};

class PreTokenizer {
 public:
  PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // The stages of a name as in GGUF's tokenizer.ggml.pre; kUnsupported for one not known.
  static Result<PreTokenizer> FromName(std::string_view name);
  // The split of GPT-2, which a ByteLevel step of tokenizer.json makes by itself.
  static std::string_view Gpt2Pattern();

  bool empty() const { return stages_.empty(); }  // Every text is one piece.

  // `inverted`: what does not match is treated as a match, and the other way round.
  // `field` stands in the error.
  Status AddStage(std::string_view pattern, SplitBehavior behavior, bool inverted,
                  const std::string& field);

  // Replaces `pieces` by those of text[0, text.size()), in order, none empty. The text may be
  // invalid UTF-8: an invalid byte is cut like a control character.
  // Requires: fewer than 4 GiB.
  void Split(std::string_view text, std::vector<TextSpan>& pieces) const;

 private:
  struct Stage;
  std::vector<std::unique_ptr<const Stage>> stages_;
};

// Facts of pre-tokenizer names beyond the split.
struct PreTokenizerTraits {
  bool ignore_merges = false;
  bool adds_bos = false;
};
PreTokenizerTraits TraitsOfPreTokenizer(std::string_view name);

}  // namespace kvrm
