// SPDX-License-Identifier: Apache-2.0
// Tokenizer: text to token ids and back.
//
// Two kinds: SentencePiece-style BPE with byte fallback (GGUF "llama"; tokenizer.json BPE with
// byte_fallback) and byte-level BPE with a pre-tokenizer (GGUF "gpt2"; tokenizer.json BPE with a
// ByteLevel step). Other kinds are refused by name.
//
// Encode is O(n log n) in bytes, whatever the text (F6). Immutable after construction and safe to
// use from many threads. Invalid UTF-8 never fails: it is encoded byte by byte where the vocabulary
// can, else as the unknown token, else left out. Byte-level vocabularies that have all 256 bytes
// give Decode(Encode(x)) == x for any bytes, unless their tokenizer.json normalises.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/gguf.h"

namespace kvrm {

// A 128,000-token tokenizer.json has 17 MiB.
constexpr std::uint64_t kMaxTokenizerJsonBytes = std::uint64_t{64} << 20;

struct EncodeOptions {
  bool add_special = true;     // Beginning-of-sequence (and end) tokens as the model wants them.
  bool parse_special = false;  // Whether control tokens written out in the text become tokens.
};

// A piece of text for EncodePieces: trusted text (the template's own) may name special tokens,
// user text never does.
struct TextPiece {
  std::string_view text;
  bool trusted = false;
};

class Tokenizer {
 public:
  static Result<Tokenizer> FromGguf(const GgufFile& file);
  // `tokenizer_json` and `config_json` (tokenizer_config.json, may be empty) are file contents.
  static Result<Tokenizer> FromHuggingFace(std::string_view tokenizer_json,
                                           std::string_view config_json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Requires: fewer than 1 GiB of text (also in EncodePieces).
  std::vector<std::int32_t> Encode(std::string_view text, const EncodeOptions& options) const;
  // As one text, except that special tokens are recognised in trusted pieces only: a control token
  // lies whole within trusted text. Tokens the vocabulary calls user-defined (words that are always
  // one token) are no structure and are recognised everywhere.
  std::vector<std::int32_t> EncodePieces(std::span<const TextPiece> pieces, bool add_special) const;

  // The bytes of one token as they appear in running text (a leading space is kept). Control tokens
  // give "" unless `special`. Ids outside the vocabulary give "".
  std::string TokenBytes(std::int32_t id, bool special = false) const;
  // The text of a sequence: TokenBytes joined, without the one space that encoding put at the very
  // start. May be invalid UTF-8 where the ids are.
  std::string Decode(std::span<const std::int32_t> ids, bool special = false) const;

  std::uint32_t num_tokens() const;
  // The token as the vocabulary spells it, for display. "" outside the vocabulary.
  std::string_view TokenName(std::int32_t id) const;
  // The token spelled so in the vocabulary, or -1. For the names of special tokens.
  std::int32_t FindToken(std::string_view name) const;
  bool IsControl(std::int32_t id) const;
  std::int32_t bos() const;  // -1: none. Likewise below.
  std::int32_t eos() const;
  bool adds_bos() const;
  // Whether encoding puts a space in front of a text that has none, and Decode drops it.
  bool adds_space_prefix() const;
  // Ids that end a generation: eos, end of turn, end of message, and the like. Ascending.
  const std::vector<std::int32_t>& stop_ids() const;
  // "SPM", "BPE gpt-2", "BPE llama-bpe", ... for display.
  std::string_view kind() const;
  // The chat template's source that came with the vocabulary; empty: none.
  std::string_view chat_template() const;

 private:
  struct Tables;
  explicit Tokenizer(std::unique_ptr<const Tables> tables);
  std::unique_ptr<const Tables> tables_;
};

// Streaming detokenisation of one sequence: Push gives the text that has become certain, which is
// always whole UTF-8 sequences; bytes that can still become one are held back. Bytes that cannot
// are replaced by U+FFFD. Finish flushes what is held.
//
// kContinuation keeps the space of a first token, which is the space between the prompt and the
// output; kMessage begins a text of its own and drops it where encoding would have put it in front,
// as Decode does. All pushes and Finish together give Decode's text with invalid bytes replaced.
class StreamDecoder {
 public:
  enum class Start : std::uint8_t { kContinuation, kMessage };

  explicit StreamDecoder(const Tokenizer& tokenizer, Start start = Start::kContinuation,
                         bool special = false)
      : tokenizer_(&tokenizer), special_(special), at_start_(start == Start::kMessage) {}
  std::string Push(std::int32_t id);
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool special_;
  bool at_start_;  // Nothing has been pushed, and a space in front is not the text's own.
  std::string held_;
};

}  // namespace kvrm
