// SPDX-License-Identifier: Apache-2.0
// Tokenizer: text to token ids and back.
//
// Two kinds: SentencePiece-style BPE with byte fallback (GGUF "llama"; tokenizer.json BPE with
// byte_fallback) and byte-level BPE with a pre-tokenizer (GGUF "gpt2"; tokenizer.json BPE with a
// ByteLevel step). Other kinds are refused by name.
//
// Encode is O(n log n) in bytes, whatever the text (F6). Immutable after construction and safe to
// use from many threads. Invalid UTF-8 never fails: it is encoded byte by byte where the vocabulary
// can, else as the replacement character.
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

  std::vector<std::int32_t> Encode(std::string_view text, const EncodeOptions& options) const;
  // As one text, except that special tokens are recognised in trusted pieces only.
  std::vector<std::int32_t> EncodePieces(std::span<const TextPiece> pieces, bool add_special) const;

  // The bytes of one token as they appear in running text (a leading space is kept). Control tokens
  // give "" unless `special`. Ids outside the vocabulary give "".
  std::string TokenBytes(std::int32_t id, bool special = false) const;
  // The text of a sequence: TokenBytes joined, without the space that encoding put in front.
  std::string Decode(std::span<const std::int32_t> ids, bool special = false) const;

  std::uint32_t num_tokens() const;
  // The token as the vocabulary spells it, for display.
  std::string_view TokenName(std::int32_t id) const;
  bool IsControl(std::int32_t id) const;
  std::int32_t bos() const;  // -1: none. Likewise below.
  std::int32_t eos() const;
  bool adds_bos() const;
  // Ids that end a generation: eos, end of turn, end of message, and the like.
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
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool special = false)
      : tokenizer_(&tokenizer), special_(special) {}
  std::string Push(std::int32_t id);
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool special_;
  std::string held_;
};

}  // namespace kvrm
