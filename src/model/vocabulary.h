// SPDX-License-Identifier: Apache-2.0
// Vocabulary: the tables a tokenizer works from, in one form whatever file they came from.
//
// Both roads (GGUF metadata, tokenizer.json) check what they read and name the field in the error;
// a Vocabulary that exists is consistent: every id in it is in range, every table has one entry a
// token. Plain data, immutable once built. Memory: about three times the size of the spellings,
// plus 32 bytes a merge.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/gguf.h"
#include "model/piece_table.h"
#include "model/pre_tokenizer.h"

namespace kvrm {

// 4 Mi tokens: sixteen times the largest vocabulary in use (262,144).
constexpr std::size_t kMaxTokens = std::size_t{4} << 20;
// The longest ordinary token in the vocabularies at hand has 128 bytes.
constexpr std::size_t kMaxTokenBytes = 4096;
// Special tokens are looked for at every position of a text, so their length bounds that work.
constexpr std::size_t kMaxSpecialBytes = 256;
constexpr std::size_t kMaxVocabularyBytes = std::size_t{256} << 20;
// Eight times the most merges in use (280,147 and 514,906).
constexpr std::size_t kMaxMerges = std::size_t{4} << 20;

// Numbered as in GGUF's tokenizer.ggml.token_type.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,      // Stands for what cannot be encoded; gives no text.
  kControl = 3,      // Structure, never text; recognised in trusted text only.
  kUserDefined = 4,  // Text that is always one token, wherever it appears.
  kUnused = 5,       // A place in the numbering and nothing else.
  kByte = 6,         // One byte, spelled <0xHH>.
};

// Where SentencePiece-style encoding puts a space of its own before text.
enum class SpacePrefix : std::uint8_t { kNever, kAtStart, kAfterSpecial };

struct Vocabulary {
  enum class Kind : std::uint8_t { kSentencePiece, kByteLevel };

  Kind kind = Kind::kByteLevel;
  std::string kind_name;  // For display.

  // One entry a token.
  PieceTable names;  // As spelled in the file.
  PieceTable bytes;  // As they appear in text.
  std::vector<TokenType> types;
  // From tokenizer.json's added_tokens: whether the token eats the white space beside it.
  std::vector<bool> strips_left, strips_right;

  // Merging goes by rules, or (SentencePiece from GGUF) by each token's rank: the place of its
  // score, best first, equals alike. Exactly one of the two is filled.
  MergeTable merges;
  std::vector<std::uint32_t> ranks;
  bool fuses_unknown = true;   // A run of what cannot be encoded is one unknown token.
  bool ignore_merges = false;  // A pre-token that is a token as a whole is taken so.

  PreTokenizer pre_tokenizer;
  // SentencePiece: in no token does a visible space follow another character, so no merge crosses
  // the beginning of a word and words can be encoded one by one, in cache.
  bool spaces_begin_words = false;
  // Normalisation, in this order: NFC, replacements, surplus spaces, space prefix.
  bool composes_nfc = false;
  std::vector<std::pair<std::string, std::string>> replacements;
  bool removes_extra_spaces = false;
  SpacePrefix space_prefix = SpacePrefix::kNever;
  bool prefix_unless_present = false;  // No prefix before text that begins with a space.

  std::int32_t bos = -1;
  std::int32_t eos = -1;
  std::int32_t unknown = -1;
  std::vector<std::int32_t> prefix_ids;  // Put around an encoded text when add_special.
  std::vector<std::int32_t> suffix_ids;
  std::vector<std::int32_t> stop_ids;        // Ascending, each once.
  std::array<std::int32_t, 256> byte_ids{};  // -1: no token for this byte.

  std::string chat_template;

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(types.size()); }
  bool InRange(std::int32_t id) const { return id >= 0 && id < num_tokens(); }
};

Result<Vocabulary> ReadGgufVocabulary(const GgufFile& file);
Result<Vocabulary> ReadTokenizerJson(std::string_view tokenizer_json, std::string_view config_json);

// The steps both roads share.

// "▁", the visible space of SentencePiece.
constexpr std::string_view kVisibleSpace = "\xE2\x96\x81";

// The byte of a piece spelled <0xHH>, or -1.
int ParseByteToken(std::string_view piece);

// Byte-level BPE spells every byte as one printable character: U+0100 and on for those that are
// none. Appends the spelling of `bytes`.
void AppendByteSpelling(std::string& out, std::string_view bytes);

// Adds the rule that `left` and `right` merge at `rank`; `field` stands in the error. Rules whose
// result is a control token are left out: text must never become one.
Status AddMerge(Vocabulary& vocabulary, std::string_view left, std::string_view right,
                std::uint32_t rank, const std::string& field);

// Fills what follows from names, types, kind, bos and eos: `bytes`, `byte_ids`, `stop_ids`, and
// makes control tokens of user-defined ones that end a turn. `untyped`: the file gave no types.
// Requires: `names` is indexed and `types` has its size. `field` is the list of tokens' name.
Status FinishVocabulary(Vocabulary& vocabulary, bool untyped, const std::string& field);

}  // namespace kvrm
