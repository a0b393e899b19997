// SPDX-License-Identifier: Apache-2.0
// A Vocabulary from the tokenizer.* metadata of a GGUF file.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

#include "model/quoted.h"
#include "model/vocabulary.h"

namespace kvrm {

namespace {

const std::string kTokens = "tokenizer.ggml.tokens";
const std::string kTypes = "tokenizer.ggml.token_type";
const std::string kScores = "tokenizer.ggml.scores";
const std::string kMerges = "tokenizer.ggml.merges";

Error Wrong(const std::string& field, const std::string& what) {
  return {ErrorCode::kInvalidArgument, field + ": " + what};
}

Error WrongLength(const std::string& field, std::size_t length, std::size_t num_tokens) {
  return Wrong(field, "has " + std::to_string(length) + " entries for " +
                          std::to_string(num_tokens) + " tokens");
}

Result<bool> GetBoolOr(const GgufFile& file, std::string_view key, bool otherwise) {
  if (!file.Has(key)) return otherwise;
  return file.GetBool(key);
}

Result<Vocabulary::Kind> ReadKind(const GgufFile& file) {
  const Result<std::string_view> model = file.GetString("tokenizer.ggml.model");
  if (!model) return model.error();
  if (*model == "llama") return Vocabulary::Kind::kSentencePiece;
  if (*model == "gpt2") return Vocabulary::Kind::kByteLevel;
  struct Known {
    std::string_view name, meaning;
  };
  constexpr Known kRefused[] = {{"bert", "WordPiece"},     {"t5", "Unigram"},
                                {"rwkv", "RWKV trie"},     {"plamo2", "PLaMo-2"},
                                {"none", "no vocabulary"}, {"no_vocab", "no vocabulary"},
                                {"gemma4", "Gemma 4 BPE"}, {"hybriddna", "DNA k-mers"}};
  std::string what = "tokenizer kind " + Quoted(*model);
  for (const Known& known : kRefused) {
    if (known.name == *model) what += " (" + std::string(known.meaning) + ")";
  }
  return Error{ErrorCode::kUnsupported, "tokenizer.ggml.model: " + what + " is not supported"};
}

Status ReadTokens(const GgufFile& file, Vocabulary& vocabulary) {
  const Result<std::vector<std::string_view>> tokens = file.GetStrings(kTokens);
  if (!tokens) return tokens.error();
  if (tokens->empty()) return Wrong(kTokens, "the vocabulary is empty");
  if (tokens->size() > kMaxTokens) {
    return Wrong(kTokens, std::to_string(tokens->size()) + " tokens; the limit is " +
                              std::to_string(kMaxTokens));
  }
  std::size_t num_bytes = 0;
  for (const std::string_view token : *tokens) {
    num_bytes += token.size();
  }
  if (num_bytes > kMaxVocabularyBytes) {
    return Wrong(kTokens, std::to_string(num_bytes) + " bytes of text; the limit is " +
                              std::to_string(kMaxVocabularyBytes));
  }
  vocabulary.names.Reserve(tokens->size(), num_bytes);
  for (const std::string_view token : *tokens) {
    if (token.empty()) {
      return Wrong(kTokens + "[" + std::to_string(vocabulary.names.size()) + "]",
                   "the token is empty");
    }
    vocabulary.names.Append(token);
  }
  const std::int32_t repeated = vocabulary.names.BuildIndex();
  if (repeated >= 0) {
    return Wrong(kTokens + "[" + std::to_string(repeated) + "]",
                 "the token repeats token " +
                     std::to_string(vocabulary.names.Find(vocabulary.names[repeated])));
  }
  return Done{};
}

Status ReadTypes(const GgufFile& file, Vocabulary& vocabulary) {
  const std::size_t num_tokens = vocabulary.names.size();
  vocabulary.types.assign(num_tokens, TokenType::kNormal);
  if (!file.Has(kTypes)) return Done{};
  const Result<std::vector<std::int64_t>> types = file.GetInts(kTypes);
  if (!types) return types.error();
  if (types->size() != num_tokens) return WrongLength(kTypes, types->size(), num_tokens);
  for (std::size_t i = 0; i < num_tokens; ++i) {
    const std::int64_t type = (*types)[i];
    // 0 is "undefined" and written by some converters for ordinary tokens.
    if (type < 0 || type > 6) {
      return Wrong(kTypes + "[" + std::to_string(i) + "]",
                   std::to_string(type) + " is no token type (0 to 6)");
    }
    if (type != 0) vocabulary.types[i] = static_cast<TokenType>(type);
  }
  return Done{};
}

// Ranks by descending score; equal scores share one, so that the leftmost pair wins among them.
Status ReadScores(const GgufFile& file, Vocabulary& vocabulary) {
  const Result<std::vector<float>> scores = file.GetFloats(kScores);
  if (!scores) return scores.error();
  const std::size_t num_tokens = vocabulary.names.size();
  if (scores->size() != num_tokens) return WrongLength(kScores, scores->size(), num_tokens);
  for (std::size_t i = 0; i < num_tokens; ++i) {
    if (std::isnan((*scores)[i])) {
      return Wrong(kScores + "[" + std::to_string(i) + "]", "is not a number");
    }
  }
  std::vector<std::uint32_t> order(num_tokens);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](std::uint32_t a, std::uint32_t b) { return (*scores)[a] > (*scores)[b]; });
  vocabulary.ranks.assign(num_tokens, 0);
  std::uint32_t rank = 0;
  for (std::size_t i = 1; i < num_tokens; ++i) {
    if ((*scores)[order[i]] < (*scores)[order[i - 1]]) ++rank;
    vocabulary.ranks[order[i]] = rank;
  }
  return Done{};
}

Status ReadMerges(const GgufFile& file, Vocabulary& vocabulary) {
  const Result<std::vector<std::string_view>> merges = file.GetStrings(kMerges);
  if (!merges) return merges.error();
  if (merges->size() > kMaxMerges) {
    return Wrong(kMerges, std::to_string(merges->size()) + " merges; the limit is " +
                              std::to_string(kMaxMerges));
  }
  vocabulary.merges.Reserve(merges->size());
  for (std::uint32_t rank = 0; rank < merges->size(); ++rank) {
    const std::string_view merge = (*merges)[rank];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return Wrong(kMerges + "[" + std::to_string(rank) + "]", "must be two pieces and a space");
    }
    const Status added =
        AddMerge(vocabulary, merge.substr(0, space), merge.substr(space + 1), rank, kMerges);
    if (!added) return added;
  }
  return Done{};
}

Status ReadPreTokenizer(const GgufFile& file, Vocabulary& vocabulary, PreTokenizerTraits& traits) {
  std::string_view name = "default";
  if (file.Has("tokenizer.ggml.pre")) {
    const Result<std::string_view> given = file.GetString("tokenizer.ggml.pre");
    if (!given) return given.error();
    name = *given;
    vocabulary.kind_name = "BPE " + std::string(name);
  } else {
    vocabulary.kind_name = "BPE default (no tokenizer.ggml.pre)";
  }
  Result<PreTokenizer> pre_tokenizer = PreTokenizer::FromName(name);
  if (!pre_tokenizer) return pre_tokenizer.error();
  vocabulary.pre_tokenizer = std::move(pre_tokenizer).value();
  traits = TraitsOfPreTokenizer(name);
  vocabulary.ignore_merges = traits.ignore_merges;
  return Done{};
}

// The id under `key`; where the key is absent, that of `spelling` in a SentencePiece vocabulary,
// which always has these three.
Status ReadId(const GgufFile& file, const Vocabulary& vocabulary, const std::string& key,
              std::string_view spelling, std::int32_t& id) {
  if (!file.Has(key)) {
    if (vocabulary.kind == Vocabulary::Kind::kSentencePiece && !spelling.empty()) {
      id = vocabulary.names.Find(spelling);
    }
    return Done{};
  }
  const Result<std::uint64_t> value = file.GetUint(key);
  if (!value) return value.error();
  if (*value >= vocabulary.types.size()) {
    return Wrong(key, std::to_string(*value) + " is not an id of the vocabulary, which has " +
                          std::to_string(vocabulary.types.size()) + " tokens");
  }
  id = static_cast<std::int32_t>(*value);
  return Done{};
}

Status ReadSpecialIds(const GgufFile& file, Vocabulary& vocabulary) {
  std::int32_t end_of_turn = -1;
  std::int32_t end_of_message = -1;
  struct Field {
    std::string key;
    std::string_view spelling;
    std::int32_t* id;
  };
  const Field fields[] = {
      {"tokenizer.ggml.bos_token_id", "<s>", &vocabulary.bos},
      {"tokenizer.ggml.eos_token_id", "</s>", &vocabulary.eos},
      {"tokenizer.ggml.unknown_token_id", "<unk>", &vocabulary.unknown},
      {"tokenizer.ggml.eot_token_id", "", &end_of_turn},
      {"tokenizer.ggml.eom_token_id", "", &end_of_message},
  };
  for (const Field& field : fields) {
    const Status read = ReadId(file, vocabulary, field.key, field.spelling, *field.id);
    if (!read) return read;
  }
  if (end_of_turn >= 0) vocabulary.stop_ids.push_back(end_of_turn);
  if (end_of_message >= 0) vocabulary.stop_ids.push_back(end_of_message);
  return Done{};
}

Status ReadOptions(const GgufFile& file, bool adds_bos_otherwise, Vocabulary& vocabulary) {
  const Result<bool> add_bos =
      GetBoolOr(file, "tokenizer.ggml.add_bos_token", adds_bos_otherwise && vocabulary.bos >= 0);
  if (!add_bos) return add_bos.error();
  const Result<bool> add_eos = GetBoolOr(file, "tokenizer.ggml.add_eos_token", false);
  if (!add_eos) return add_eos.error();
  if (*add_bos && vocabulary.bos < 0) {
    return Wrong("tokenizer.ggml.add_bos_token", "is true, but there is no bos_token_id");
  }
  if (*add_eos && vocabulary.eos < 0) {
    return Wrong("tokenizer.ggml.add_eos_token", "is true, but there is no eos_token_id");
  }
  if (*add_bos) vocabulary.prefix_ids.push_back(vocabulary.bos);
  if (*add_eos) vocabulary.suffix_ids.push_back(vocabulary.eos);
  if (vocabulary.kind == Vocabulary::Kind::kSentencePiece) {
    const Result<bool> prefix = GetBoolOr(file, "tokenizer.ggml.add_space_prefix", true);
    if (!prefix) return prefix.error();
    vocabulary.space_prefix = *prefix ? SpacePrefix::kAfterSpecial : SpacePrefix::kNever;
    const Result<bool> extra = GetBoolOr(file, "tokenizer.ggml.remove_extra_whitespaces", false);
    if (!extra) return extra.error();
    vocabulary.removes_extra_spaces = *extra;
  }
  if (file.Has("tokenizer.chat_template")) {
    const Result<std::string_view> source = file.GetString("tokenizer.chat_template");
    if (!source) return source.error();
    vocabulary.chat_template = *source;
  }
  return Done{};
}

// GGUF has no flag for tokens that eat the white space after them. Phi-3's do, all but four, and
// its files are known by their name only.
void ApplyPhi3Stripping(const GgufFile& file, Vocabulary& vocabulary) {
  const Result<std::string_view> name = file.GetString("general.name");
  if (!name) return;
  std::string lower(*name);
  for (char& c : lower) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (lower.find("phi-3") == std::string::npos && lower.find("phi3") == std::string::npos) return;
  for (std::size_t i = 0; i < vocabulary.types.size(); ++i) {
    const std::string_view token = vocabulary.names[static_cast<std::int32_t>(i)];
    if (vocabulary.types[i] == TokenType::kControl && token != "<s>" && token != "<unk>" &&
        token != "<|endoftext|>") {
      vocabulary.strips_right[i] = true;
    }
  }
}

}  // namespace

Result<Vocabulary> ReadGgufVocabulary(const GgufFile& file) {
  Vocabulary vocabulary;
  const Result<Vocabulary::Kind> kind = ReadKind(file);
  if (!kind) return kind.error();
  vocabulary.kind = *kind;
  const bool sentence_piece = *kind == Vocabulary::Kind::kSentencePiece;

  Status status = ReadTokens(file, vocabulary);
  if (status) status = ReadTypes(file, vocabulary);
  if (status) status = ReadSpecialIds(file, vocabulary);
  if (status) status = FinishVocabulary(vocabulary, !file.Has(kTypes), kTokens);
  PreTokenizerTraits traits = {.ignore_merges = false, .adds_bos = sentence_piece};
  if (sentence_piece) {
    vocabulary.kind_name = "SPM";
    if (status) status = ReadScores(file, vocabulary);
  } else {
    if (status) status = ReadPreTokenizer(file, vocabulary, traits);
    if (status) status = ReadMerges(file, vocabulary);
  }
  if (status) status = ReadOptions(file, traits.adds_bos, vocabulary);
  if (!status) return status.error();
  vocabulary.strips_left.assign(vocabulary.types.size(), false);
  vocabulary.strips_right.assign(vocabulary.types.size(), false);
  ApplyPhi3Stripping(file, vocabulary);
  return vocabulary;
}

}  // namespace kvrm
