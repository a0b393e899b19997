// SPDX-License-Identifier: Apache-2.0
#include "model/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/utf8.h"
#include "model/quoted.h"

namespace kvrm {

namespace {

// Spellings by which published models end a turn or a message.
constexpr std::string_view kStopNames[] = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eot|>",
    "<|EOT|>",
    "<|eom|>",
    "<|return|>",
    "<|call|>",
    "<|end_of_role|>",
    "<end_of_turn>",
    "<turn|>",
    "<EOT>",
    "< EOT >",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
    "<\xEF\xBD\x9C"
    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
};

// The character each byte is spelled with in byte-level BPE, and back.
struct ByteAlphabet {
  std::array<char32_t, 256> spelling{};
  std::array<std::int16_t, 512> byte_of{};  // -1: spells no byte
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet result;
    result.byte_of.fill(-1);
    char32_t next_substitute = 256;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t spelling = printable ? byte : next_substitute++;
      result.spelling[byte] = spelling;
      result.byte_of[spelling] = static_cast<std::int16_t>(byte);
    }
    return result;
  }();
  return alphabet;
}

// The bytes a byte-level piece spells; nullopt when a character of it spells none.
std::optional<std::string> SpelledBytes(std::string_view piece) {
  std::string bytes;
  bytes.reserve(piece.size());
  for (std::size_t pos = 0; pos < piece.size();) {
    const Utf8Char c = DecodeUtf8(piece, pos);
    if (c.state != Utf8State::kValid || c.code_point >= 512) return std::nullopt;
    const std::int16_t byte = Alphabet().byte_of[c.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    pos += c.size;
  }
  return bytes;
}

std::string WithPlainSpaces(std::string_view piece) {
  std::string text;
  for (std::size_t pos = 0; pos < piece.size();) {
    if (piece.substr(pos, kVisibleSpace.size()) == kVisibleSpace) {
      text.push_back(' ');
      pos += kVisibleSpace.size();
    } else {
      text.push_back(piece[pos++]);
    }
  }
  return text;
}

// Whether a visible space follows another character in `piece`.
bool HasInnerSpace(std::string_view piece) {
  bool in_word = false;
  for (std::size_t pos = 0; pos < piece.size();) {
    const bool space = piece.substr(pos, kVisibleSpace.size()) == kVisibleSpace;
    if (space && in_word) return true;
    in_word = in_word || !space;
    pos += space ? kVisibleSpace.size() : 1;
  }
  return false;
}

std::string TextOf(const Vocabulary& vocabulary, std::int32_t id) {
  const std::string_view name = vocabulary.names[id];
  switch (vocabulary.types[static_cast<std::size_t>(id)]) {
    case TokenType::kUnused:
      return {};
    case TokenType::kByte:
      return std::string(1, static_cast<char>(ParseByteToken(name)));
    case TokenType::kUnknown:
    case TokenType::kControl:
    case TokenType::kUserDefined:
      return std::string(name);
    case TokenType::kNormal:
      break;
  }
  if (vocabulary.kind == Vocabulary::Kind::kSentencePiece) return WithPlainSpaces(name);
  std::optional<std::string> bytes = SpelledBytes(name);
  return bytes ? *std::move(bytes) : std::string(name);
}

void FindStopIds(Vocabulary& vocabulary, bool untyped) {
  std::vector<std::int32_t>& stop_ids = vocabulary.stop_ids;
  if (vocabulary.eos >= 0) stop_ids.push_back(vocabulary.eos);
  for (const std::int32_t id : {vocabulary.bos, vocabulary.eos}) {
    if (id < 0) continue;
    TokenType& type = vocabulary.types[static_cast<std::size_t>(id)];
    if (type == TokenType::kUserDefined || untyped) type = TokenType::kControl;
  }
  // Harmony: an answer is several messages, each with this end, and ends by others.
  const bool has_messages =
      vocabulary.names.Find("<|return|>") >= 0 && vocabulary.names.Find("<|call|>") >= 0;
  for (const std::string_view name : kStopNames) {
    const std::int32_t id = vocabulary.names.Find(name);
    if (id < 0) continue;
    TokenType& type = vocabulary.types[static_cast<std::size_t>(id)];
    // A turn's end that user text could write would let it speak for others.
    if (type == TokenType::kUserDefined || (untyped && type == TokenType::kNormal)) {
      type = TokenType::kControl;
    }
    if (has_messages && name == "<|end|>") continue;
    if (type == TokenType::kControl) stop_ids.push_back(id);
  }
  std::sort(stop_ids.begin(), stop_ids.end());
  stop_ids.erase(std::unique(stop_ids.begin(), stop_ids.end()), stop_ids.end());
}

}  // namespace

int ParseByteToken(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  int byte = 0;
  const char* const end = piece.data() + 5;
  const std::from_chars_result parsed = std::from_chars(piece.data() + 3, end, byte, 16);
  // from_chars accepts a minus sign.
  return parsed.ec == std::errc() && parsed.ptr == end && piece[3] != '-' ? byte : -1;
}

void AppendByteSpelling(std::string& out, std::string_view bytes) {
  for (const char byte : bytes) {
    AppendUtf8(out, Alphabet().spelling[static_cast<unsigned char>(byte)]);
  }
}

Status AddMerge(Vocabulary& vocabulary, std::string_view left, std::string_view right,
                std::uint32_t rank, const std::string& field) {
  std::string whole(left);
  whole += right;
  const auto find = [&](std::string_view piece) { return vocabulary.names.Find(piece); };
  const std::int32_t left_id = find(left);
  const std::int32_t right_id = find(right);
  const std::int32_t id = find(whole);
  if (left_id < 0 || right_id < 0 || id < 0) {
    const std::string_view missing = left_id < 0 ? left : right_id < 0 ? right : whole;
    return Error{ErrorCode::kInvalidArgument, field + "[" + std::to_string(rank) + "]: " +
                                                  Quoted(missing) + " is not in the vocabulary"};
  }
  const TokenType type = vocabulary.types[static_cast<std::size_t>(id)];
  if (type == TokenType::kControl || type == TokenType::kUnknown) return Done{};
  vocabulary.merges.Add(left_id, right_id, {rank, id});
  return Done{};
}

Status FinishVocabulary(Vocabulary& vocabulary, bool untyped, const std::string& field) {
  FindStopIds(vocabulary, untyped);
  // MPT and StarCoder name their end token as the unknown one: text that cannot be encoded must
  // not end a sequence.
  if (vocabulary.unknown == vocabulary.bos ||
      std::count(vocabulary.stop_ids.begin(), vocabulary.stop_ids.end(), vocabulary.unknown) > 0) {
    vocabulary.unknown = -1;
  }
  const bool sentence_piece = vocabulary.kind == Vocabulary::Kind::kSentencePiece;
  vocabulary.byte_ids.fill(-1);
  vocabulary.spaces_begin_words = sentence_piece;
  vocabulary.bytes.Reserve(vocabulary.types.size(), vocabulary.types.size() * 8);
  for (std::int32_t id = 0; id < vocabulary.num_tokens(); ++id) {
    const std::string_view name = vocabulary.names[id];
    TokenType& type = vocabulary.types[static_cast<std::size_t>(id)];
    const auto wrong = [&](const std::string& what) {
      return Error{ErrorCode::kInvalidArgument,
                   field + "[" + std::to_string(id) + "]: " + Quoted(name) + " " + what};
    };
    const bool special = type == TokenType::kControl || type == TokenType::kUserDefined ||
                         type == TokenType::kUnknown;
    const std::size_t limit = special ? kMaxSpecialBytes : kMaxTokenBytes;
    if (name.size() > limit) {
      return wrong("has " + std::to_string(name.size()) + " bytes; the limit is " +
                   std::to_string(limit));
    }
    const int byte = sentence_piece || type == TokenType::kByte ? ParseByteToken(name) : -1;
    if (type == TokenType::kByte && byte < 0) return wrong("must be spelled <0xHH>");
    if (byte >= 0 && type == TokenType::kNormal) type = TokenType::kByte;
    if (byte >= 0 && type == TokenType::kByte) {
      std::int32_t& byte_id = vocabulary.byte_ids[static_cast<std::size_t>(byte)];
      if (byte_id < 0) byte_id = id;
    }
    if (type == TokenType::kNormal && sentence_piece && HasInnerSpace(name)) {
      vocabulary.spaces_begin_words = false;
    }
    vocabulary.bytes.Append(TextOf(vocabulary, id));
  }
  if (sentence_piece) return Done{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::string spelling;
    AppendUtf8(spelling, Alphabet().spelling[byte]);
    const std::int32_t id = vocabulary.names.Find(spelling);
    if (id >= 0 && vocabulary.types[static_cast<std::size_t>(id)] == TokenType::kNormal) {
      vocabulary.byte_ids[byte] = id;
    }
  }
  return Done{};
}

}  // namespace kvrm
