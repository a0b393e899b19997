// SPDX-License-Identifier: Apache-2.0
#include "model/word_encoder.h"

#include <algorithm>

#include "base/utf8.h"

namespace kvrm {

namespace {

// The token text may become, or -1: ordinary tokens only.
std::int32_t FindOrdinary(const Vocabulary& vocabulary, std::string_view piece) {
  if (piece.size() > kMaxTokenBytes) return -1;
  const std::int32_t id = vocabulary.names.Find(piece);
  if (id < 0) return -1;
  const TokenType type = vocabulary.types[static_cast<std::size_t>(id)];
  return type == TokenType::kNormal || type == TokenType::kUserDefined ? id : -1;
}

// Adds the unknown token, if there is one, unless the run of the unencodable is already marked.
void AddUnknown(const Vocabulary& vocabulary, bool& in_unknown_run,
                std::vector<std::int32_t>& ids) {
  if (vocabulary.unknown >= 0 && !in_unknown_run) ids.push_back(vocabulary.unknown);
  in_unknown_run = vocabulary.fuses_unknown;
}

// Byte tokens for every byte of `piece`; false, adding none, when one is missing.
bool AddBytes(const Vocabulary& vocabulary, std::string_view piece,
              std::vector<std::int32_t>& ids) {
  const std::size_t before = ids.size();
  for (const char byte : piece) {
    const std::int32_t id = vocabulary.byte_ids[static_cast<unsigned char>(byte)];
    if (id < 0) {
      ids.resize(before);
      return false;
    }
    ids.push_back(id);
  }
  return true;
}

void EncodeBytePiece(const Vocabulary& vocabulary, std::string_view piece, WordScratch& scratch,
                     std::vector<std::int32_t>& ids) {
  if (vocabulary.ignore_merges) {
    scratch.spelling.clear();
    AppendByteSpelling(scratch.spelling, piece);
    const std::int32_t whole = FindOrdinary(vocabulary, scratch.spelling);
    if (whole >= 0) {
      ids.push_back(whole);
      return;
    }
  }
  MergeScratch& merge = scratch.merge;
  merge.Clear();
  for (std::uint32_t i = 0; i < piece.size(); ++i) {
    merge.Append(vocabulary.byte_ids[static_cast<unsigned char>(piece[i])], i, 1);
  }
  MergeSymbols(merge, [&](const MergeSymbol& left, const MergeSymbol& right) {
    return vocabulary.merges.Find(left.id, right.id);
  });
  bool in_unknown_run = false;
  for (std::uint32_t idx = 0; idx != kNoSymbol; idx = merge.symbols[idx].next) {
    const std::int32_t id = merge.symbols[idx].id;
    if (id < 0) {
      AddUnknown(vocabulary, in_unknown_run, ids);
      continue;
    }
    in_unknown_run = false;
    ids.push_back(id);
  }
}

// The end of the word that begins at `begin`: before the next visible space that follows another
// character.
std::size_t WordEnd(std::string_view text, std::size_t begin) {
  std::size_t pos = begin;
  while (text.substr(pos, kVisibleSpace.size()) == kVisibleSpace) {
    pos += kVisibleSpace.size();
  }
  return std::min(text.find(kVisibleSpace, pos), text.size());
}

void EncodeCharacters(const Vocabulary& vocabulary, std::string_view text, bool& in_unknown_run,
                      WordScratch& scratch, std::vector<std::int32_t>& ids) {
  MergeScratch& merge = scratch.merge;
  merge.Clear();
  for (std::uint32_t pos = 0; pos < text.size();) {
    const std::uint32_t size = DecodeUtf8(text, pos).size;
    merge.Append(FindOrdinary(vocabulary, text.substr(pos, size)), pos, size);
    pos += size;
  }
  if (vocabulary.ranks.empty()) {
    MergeSymbols(merge, [&](const MergeSymbol& left, const MergeSymbol& right) {
      return vocabulary.merges.Find(left.id, right.id);
    });
  } else {
    MergeSymbols(merge, [&](const MergeSymbol& left, const MergeSymbol& right) -> PairMerge {
      const std::int32_t id =
          FindOrdinary(vocabulary, text.substr(left.begin, left.size + right.size));
      if (id < 0) return {};
      return {vocabulary.ranks[static_cast<std::size_t>(id)], id};
    });
  }
  for (std::uint32_t idx = 0; idx != kNoSymbol; idx = merge.symbols[idx].next) {
    const MergeSymbol& symbol = merge.symbols[idx];
    if (symbol.id >= 0) {
      ids.push_back(symbol.id);
    } else if (!AddBytes(vocabulary, text.substr(symbol.begin, symbol.size), ids)) {
      AddUnknown(vocabulary, in_unknown_run, ids);
      continue;
    }
    in_unknown_run = false;
  }
}

}  // namespace

void EncodeSentencePiece(const Vocabulary& vocabulary, std::string_view text, WordScratch& scratch,
                         std::vector<std::int32_t>& ids) {
  vocabulary.pre_tokenizer.Split(text, scratch.pieces);
  for (const TextSpan piece : scratch.pieces) {
    bool in_unknown_run = false;
    for (std::size_t begin = piece.begin; begin < piece.end;) {
      const std::size_t end =
          vocabulary.spaces_begin_words ? WordEnd(text.substr(0, piece.end), begin) : piece.end;
      EncodeCharacters(vocabulary, text.substr(begin, end - begin), in_unknown_run, scratch, ids);
      begin = end;
    }
  }
}

void EncodeByteLevel(const Vocabulary& vocabulary, std::string_view text, WordScratch& scratch,
                     std::vector<std::int32_t>& ids) {
  vocabulary.pre_tokenizer.Split(text, scratch.pieces);
  for (const TextSpan piece : scratch.pieces) {
    EncodeBytePiece(vocabulary, text.substr(piece.begin, piece.end - piece.begin), scratch, ids);
  }
}

}  // namespace kvrm
