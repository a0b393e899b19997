// SPDX-License-Identifier: Apache-2.0
// The two kinds of BPE: normalised text to token ids, special tokens aside.
//
// Each adds the ids of `text` to `ids`. O(n log n) in bytes. Threading: const tables, one
// WordScratch per call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/merge.h"
#include "model/vocabulary.h"

namespace kvrm {

struct WordScratch {
  MergeScratch merge;
  std::vector<TextSpan> pieces;
  std::string spelling;
};

// SentencePiece: characters merge over the whole of `text`, in which spaces are visible already;
// what no token covers falls back to byte tokens, else to the unknown token, once a run.
// Control and byte tokens are never made from text.
void EncodeSentencePiece(const Vocabulary& vocabulary, std::string_view text, WordScratch& scratch,
                         std::vector<std::int32_t>& ids);

// Byte-level: bytes merge within the pieces of the pre-tokenizer.
void EncodeByteLevel(const Vocabulary& vocabulary, std::string_view text, WordScratch& scratch,
                     std::vector<std::int32_t>& ids);

}  // namespace kvrm
