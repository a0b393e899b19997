// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"
#include "model/nfc.h"
#include "model/special_scanner.h"
#include "model/word_encoder.h"

namespace kvrm {

struct Tokenizer::Tables {
  explicit Tables(Vocabulary v) : vocabulary(std::move(v)), scanner(vocabulary) {}

  Vocabulary vocabulary;
  SpecialScanner scanner;
};

namespace {

// HF's strip flags go by Unicode white space; templates write these.
bool IsSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

void ReplaceAll(std::string& text, std::string_view pattern, std::string_view content) {
  if (text.find(pattern) == std::string::npos) return;
  std::string out;
  std::size_t copied = 0;
  for (std::size_t at = text.find(pattern); at != std::string::npos;
       at = text.find(pattern, copied)) {
    out.append(text, copied, at - copied).append(content);
    copied = at + pattern.size();
  }
  text = out.append(text, copied);
}

// No space at either end and no two in a row.
void RemoveExtraSpaces(std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out.push_back(c);
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  text = std::move(out);
}

// One call of Encode: walks the text and takes it apart into special tokens and what lies between.
class Encoding {
 public:
  Encoding(const Vocabulary& vocabulary, const SpecialScanner& scanner, std::string_view text)
      : vocabulary_(vocabulary), scanner_(scanner), text_(text) {}

  // [pos, end) is trusted or not; segments come in order and adjoin.
  void AddSegment(std::size_t end, bool trusted) {
    while (pos_ < end) {
      const SpecialScanner::Match match =
          scanner_.Find(vocabulary_.names, text_, pos_, end, trusted);
      if (match.id < 0) {
        pos_ = end;
        return;
      }
      AddSpecial(match);
    }
  }

  std::vector<std::int32_t> Finish(bool add_special) {
    AddPlain(text_.size());
    if (add_special) {
      ids_.insert(ids_.begin(), vocabulary_.prefix_ids.begin(), vocabulary_.prefix_ids.end());
      ids_.insert(ids_.end(), vocabulary_.suffix_ids.begin(), vocabulary_.suffix_ids.end());
    }
    return std::move(ids_);
  }

 private:
  void AddSpecial(const SpecialScanner::Match& match) {
    const std::size_t idx = static_cast<std::size_t>(match.id);
    std::size_t plain_end = match.begin;
    if (vocabulary_.strips_left[idx]) {
      while (plain_end > plain_begin_ && IsSpace(text_[plain_end - 1])) {
        --plain_end;
      }
    }
    AddPlain(plain_end);
    ids_.push_back(match.id);
    pos_ = match.end;
    if (vocabulary_.strips_right[idx]) {
      while (pos_ < text_.size() && IsSpace(text_[pos_])) {
        ++pos_;
      }
    }
    plain_begin_ = pos_;
  }

  // Encodes [plain_begin_, end), which holds no special token.
  void AddPlain(std::size_t end) {
    if (end <= plain_begin_) return;
    const std::string_view plain = text_.substr(plain_begin_, end - plain_begin_);
    const bool sentence_piece = vocabulary_.kind == Vocabulary::Kind::kSentencePiece;
    if (!sentence_piece && !Normalizes()) {
      EncodeByteLevel(vocabulary_, plain, scratch_, ids_);
      return;
    }
    const std::string normalized = Normalize(plain);
    if (sentence_piece) {
      EncodeSentencePiece(vocabulary_, normalized, scratch_, ids_);
    } else {
      EncodeByteLevel(vocabulary_, normalized, scratch_, ids_);
    }
  }

  bool Normalizes() const {
    return vocabulary_.composes_nfc || !vocabulary_.replacements.empty() ||
           vocabulary_.removes_extra_spaces || vocabulary_.space_prefix != SpacePrefix::kNever;
  }

  std::string Normalize(std::string_view plain) const {
    std::string text = vocabulary_.composes_nfc ? ComposeNfc(plain) : std::string(plain);
    for (const auto& [pattern, content] : vocabulary_.replacements) {
      ReplaceAll(text, pattern, content);
    }
    if (vocabulary_.removes_extra_spaces) RemoveExtraSpaces(text);
    // Every plain stretch begins the text or follows a special token.
    const bool wants_prefix =
        vocabulary_.space_prefix == SpacePrefix::kAfterSpecial ||
        (vocabulary_.space_prefix == SpacePrefix::kAtStart && plain_begin_ == 0);
    const bool has_prefix =
        text.starts_with(' ') ||
        (vocabulary_.kind == Vocabulary::Kind::kSentencePiece && text.starts_with(kVisibleSpace));
    if (wants_prefix && !text.empty() && !(vocabulary_.prefix_unless_present && has_prefix)) {
      text.insert(text.begin(), ' ');
    }
    if (vocabulary_.kind == Vocabulary::Kind::kSentencePiece) {
      ReplaceAll(text, " ", kVisibleSpace);
    }
    return text;
  }

  const Vocabulary& vocabulary_;
  const SpecialScanner& scanner_;
  const std::string_view text_;
  std::size_t plain_begin_ = 0;  // [plain_begin_, pos_) holds no special token, not yet encoded.
  std::size_t pos_ = 0;
  WordScratch scratch_;
  std::vector<std::int32_t> ids_;
};

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Tables> tables) : tables_(std::move(tables)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::FromGguf(const GgufFile& file) {
  Result<Vocabulary> vocabulary = ReadGgufVocabulary(file);
  if (!vocabulary) return vocabulary.error();
  return Tokenizer(std::make_unique<const Tables>(std::move(vocabulary).value()));
}

Result<Tokenizer> Tokenizer::FromHuggingFace(std::string_view tokenizer_json,
                                             std::string_view config_json) {
  Result<Vocabulary> vocabulary = ReadTokenizerJson(tokenizer_json, config_json);
  if (!vocabulary) return vocabulary.error();
  return Tokenizer(std::make_unique<const Tables>(std::move(vocabulary).value()));
}

std::vector<std::int32_t> Tokenizer::Encode(std::string_view text,
                                            const EncodeOptions& options) const {
  const TextPiece piece = {text, options.parse_special};
  return EncodePieces({&piece, 1}, options.add_special);
}

std::vector<std::int32_t> Tokenizer::EncodePieces(std::span<const TextPiece> pieces,
                                                  bool add_special) const {
  std::string joined;
  std::string_view text;
  if (pieces.size() == 1) {
    text = pieces[0].text;
  } else {
    for (const TextPiece& piece : pieces) {
      joined += piece.text;
    }
    text = joined;
  }
  CHECK(text.size() <
        0x40000000u);  // Normalising grows text threefold at most; spans have 32 bits.
  Encoding encoding(tables_->vocabulary, tables_->scanner, text);
  std::size_t end = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    end += pieces[i].text.size();
    // Neighbours of equal trust are one segment: a token may lie across them.
    if (i + 1 < pieces.size() && pieces[i + 1].trusted == pieces[i].trusted) continue;
    encoding.AddSegment(end, pieces[i].trusted);
  }
  return encoding.Finish(add_special);
}

std::string Tokenizer::TokenBytes(std::int32_t id, bool special) const {
  const Vocabulary& vocabulary = tables_->vocabulary;
  if (!vocabulary.InRange(id) || (!special && IsControl(id))) return {};
  return std::string(vocabulary.bytes[id]);
}

std::string Tokenizer::Decode(std::span<const std::int32_t> ids, bool special) const {
  const Vocabulary& vocabulary = tables_->vocabulary;
  bool at_start = adds_space_prefix();
  std::string text;
  for (const std::int32_t id : ids) {
    if (!vocabulary.InRange(id)) continue;
    const bool control = IsControl(id);
    if (control && !special) continue;
    std::string_view bytes = vocabulary.bytes[id];
    if (!control && !bytes.empty()) {
      if (at_start && bytes.front() == ' ') bytes.remove_prefix(1);
      at_start = false;
    }
    text += bytes;
  }
  return text;
}

bool Tokenizer::adds_space_prefix() const {
  return tables_->vocabulary.space_prefix != SpacePrefix::kNever;
}

std::uint32_t Tokenizer::num_tokens() const {
  return static_cast<std::uint32_t>(tables_->vocabulary.num_tokens());
}

std::string_view Tokenizer::TokenName(std::int32_t id) const {
  const Vocabulary& vocabulary = tables_->vocabulary;
  return vocabulary.InRange(id) ? vocabulary.names[id] : std::string_view();
}

std::int32_t Tokenizer::FindToken(std::string_view name) const {
  return tables_->vocabulary.names.Find(name);
}

bool Tokenizer::IsControl(std::int32_t id) const {
  const Vocabulary& vocabulary = tables_->vocabulary;
  if (!vocabulary.InRange(id)) return false;
  const TokenType type = vocabulary.types[static_cast<std::size_t>(id)];
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

std::int32_t Tokenizer::bos() const {
  return tables_->vocabulary.bos;
}
std::int32_t Tokenizer::eos() const {
  return tables_->vocabulary.eos;
}

bool Tokenizer::adds_bos() const {
  const Vocabulary& vocabulary = tables_->vocabulary;
  return vocabulary.bos >= 0 &&
         std::count(vocabulary.prefix_ids.begin(), vocabulary.prefix_ids.end(), vocabulary.bos) > 0;
}

const std::vector<std::int32_t>& Tokenizer::stop_ids() const {
  return tables_->vocabulary.stop_ids;
}

std::string_view Tokenizer::kind() const {
  return tables_->vocabulary.kind_name;
}
std::string_view Tokenizer::chat_template() const {
  return tables_->vocabulary.chat_template;
}

std::string StreamDecoder::Push(std::int32_t id) {
  std::string bytes = tokenizer_->TokenBytes(id, special_);
  if (at_start_ && !bytes.empty() && !tokenizer_->IsControl(id)) {
    if (tokenizer_->adds_space_prefix() && bytes.front() == ' ') bytes.erase(0, 1);
    at_start_ = false;
  }
  held_ += bytes;
  const std::size_t certain = held_.size() - TruncatedUtf8Tail(held_);
  std::string text;
  AppendValidUtf8(text, std::string_view(held_).substr(0, certain));
  held_.erase(0, certain);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  AppendValidUtf8(text, held_);
  held_.clear();
  return text;
}

}  // namespace kvrm
