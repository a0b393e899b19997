// SPDX-License-Identifier: Apache-2.0
// A Vocabulary from a Hugging Face tokenizer.json and tokenizer_config.json.
//
// What the file asks for and this reader does not do is refused with its path in the file
// ("normalizer.type"), never skipped: a tokenizer that is nearly right is wrong.
#include <algorithm>

#include "base/json.h"
#include "model/quoted.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"

namespace kvrm {

namespace {

// A file may leave numbers unused, but not so many that a few bytes ask for a large table.
constexpr std::size_t kMaxHoles = 65'536;
constexpr std::size_t kMaxReplacements = 16;
constexpr std::size_t kMaxStages = 32;

Error Wrong(const std::string& path, const std::string& what) {
  return {ErrorCode::kInvalidArgument, path + ": " + what};
}

Error Unsupported(const std::string& path, const std::string& what) {
  return {ErrorCode::kUnsupported, path + ": " + what + " is not supported"};
}

std::string_view View(const json::string& text) {
  return {text.data(), text.size()};
}

// The member, or null where it is absent or JSON's null.
const json::value* Member(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<std::string_view> StringAt(const json::object& object, std::string_view name,
                                  const std::string& path) {
  const json::value* value = Member(object, name);
  if (value == nullptr || !value->is_string()) {
    return Wrong(path + "." + std::string(name), "must be a string");
  }
  return View(value->get_string());
}

Result<bool> BoolAt(const json::object& object, std::string_view name, bool otherwise,
                    const std::string& path) {
  const json::value* value = Member(object, name);
  if (value == nullptr) return otherwise;
  if (!value->is_bool()) return Wrong(path + "." + std::string(name), "must be true or false");
  return value->get_bool();
}

// The array under `name`; null where absent.
Result<const json::array*> ArrayAt(const json::object& object, std::string_view name,
                                   const std::string& path) {
  const json::value* value = Member(object, name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) return Wrong(path + "." + std::string(name), "must be an array");
  return &value->get_array();
}

Result<const json::object*> AsObject(const json::value& value, const std::string& path) {
  if (!value.is_object()) return Wrong(path, "must be an object");
  return &value.get_object();
}

Result<std::int32_t> IdOf(const json::value& value, const std::string& path) {
  if (value.is_int64() && value.get_int64() >= 0 &&
      static_cast<std::uint64_t>(value.get_int64()) < kMaxTokens) {
    return static_cast<std::int32_t>(value.get_int64());
  }
  return Wrong(path, "must be an id from 0 to " + std::to_string(kMaxTokens - 1));
}

std::string Indexed(const std::string& path, std::size_t idx) {
  return path + "[" + std::to_string(idx) + "]";
}

// Quotes what PCRE2 might read as syntax.
std::string LiteralPattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool word = byte >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                      (c >= 'A' && c <= 'Z') || c == '_';
    if (!word) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

class JsonReader {
 public:
  Result<Vocabulary> Read(std::string_view tokenizer_json, std::string_view config_json);

 private:
  struct AddedToken {
    std::int32_t id = -1;
    std::string_view content;
    bool special = false;
    bool strips_left = false;
    bool strips_right = false;
  };

  Status ReadParts(const json::object& root, const json::object& config);
  Status ReadNormalizer(const json::value& value, const std::string& path);
  Status ReadReplacement(const json::object& step, const std::string& path);
  Status ReadPreTokenizer(const json::value& value, const std::string& path);
  Status ReadSplit(const json::object& step, const std::string& path);
  Status ReadByteLevel(const json::object& step, const std::string& path);
  Status ReadMetaspace(const json::object& step, const std::string& path);
  Status AddStage(std::string_view pattern, SplitBehavior behavior, bool inverted,
                  const std::string& path);
  Status CheckDecoder(const json::value& value, const std::string& path);
  Status CheckModel();
  Status ChooseKind();
  Status ReadAddedTokens(const json::object& root);
  Result<AddedToken> ReadAddedToken(const json::value& value, const std::string& path);
  Status ReadTokens();
  Status PlaceToken(std::int32_t id, std::string_view name, const std::string& path);
  Status ReadMerges();
  Status ReadPostProcessor(const json::value& value, const std::string& path);
  Status ReadTemplate(const json::object& step, const std::string& path);
  Status ReadConfig(const json::object& config);
  Status ReadNamedToken(const json::object& config, std::string_view name, std::int32_t& id);
  Status ReadAddFlag(const json::object& config, std::string_view name, std::int32_t id,
                     std::vector<std::int32_t>& ids);
  Status ReadChatTemplate(const json::object& config);

  Vocabulary vocabulary_;
  const json::object* model_ = nullptr;
  std::vector<AddedToken> added_;
  std::vector<std::string_view> names_;  // By id; empty: a hole.
  std::size_t num_stages_ = 0;
  bool byte_fallback_ = false;
  bool byte_level_ = false;      // A ByteLevel step was seen.
  bool visible_spaces_ = false;  // Spaces become U+2581.
  bool has_space_step_ = false;  // Prepend or Metaspace asked for a prefix.
};

Result<Vocabulary> JsonReader::Read(std::string_view tokenizer_json, std::string_view config_json) {
  const JsonLimits limits = {.max_bytes = kMaxTokenizerJsonBytes, .max_depth = 64};
  const Result<json::value> root = ParseJson(tokenizer_json, limits);
  if (!root) return Error{root.error().code, "tokenizer.json: " + root.error().message};
  const Result<json::value> config =
      config_json.empty() ? Result<json::value>(json::object()) : ParseJson(config_json, limits);
  if (!config) {
    return Error{config.error().code, "tokenizer_config.json: " + config.error().message};
  }
  if (!root->is_object()) return Wrong("tokenizer.json", "must be an object");
  if (!config->is_object()) return Wrong("tokenizer_config.json", "must be an object");
  const Status read = ReadParts(root->get_object(), config->get_object());
  if (!read) return read.error();
  return std::move(vocabulary_);
}

Status JsonReader::ReadParts(const json::object& root, const json::object& config) {
  const json::value* model = Member(root, "model");
  if (model == nullptr || !model->is_object()) return Wrong("model", "must be an object");
  model_ = &model->get_object();
  Status status = CheckModel();
  if (const json::value* step = Member(root, "normalizer"); status && step != nullptr) {
    status = ReadNormalizer(*step, "normalizer");
  }
  if (const json::value* step = Member(root, "pre_tokenizer"); status && step != nullptr) {
    status = ReadPreTokenizer(*step, "pre_tokenizer");
  }
  if (const json::value* step = Member(root, "decoder"); status && step != nullptr) {
    status = CheckDecoder(*step, "decoder");
  }
  if (status) status = ChooseKind();
  if (status) status = ReadAddedTokens(root);
  if (status) status = ReadTokens();
  if (const json::value* step = Member(root, "post_processor"); status && step != nullptr) {
    status = ReadPostProcessor(*step, "post_processor");
  }
  if (status) status = ReadConfig(config);
  if (status) status = FinishVocabulary(vocabulary_, false, "model.vocab");
  if (!byte_level_ && !byte_fallback_) vocabulary_.byte_ids.fill(-1);
  if (status) status = ReadMerges();
  return status;
}

Status JsonReader::CheckModel() {
  const Result<std::string_view> type = StringAt(*model_, "type", "model");
  if (!type) return type.error();
  if (*type != "BPE") return Unsupported("model.type", "tokenizer model " + Quoted(*type));
  for (const std::string_view name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json::value* value = Member(*model_, name);
    if (value == nullptr || (value->is_string() && value->get_string().empty())) continue;
    return Unsupported("model." + std::string(name), "a marker of sub-words");
  }
  if (const json::value* dropout = Member(*model_, "dropout"); dropout != nullptr) {
    const bool zero = (dropout->is_double() && dropout->get_double() == 0.0) ||
                      (dropout->is_int64() && dropout->get_int64() == 0);
    if (!zero) return Unsupported("model.dropout", "merging at random");
  }
  const Result<bool> ignore = BoolAt(*model_, "ignore_merges", false, "model");
  if (!ignore) return ignore.error();
  const Result<bool> fuse = BoolAt(*model_, "fuse_unk", false, "model");
  if (!fuse) return fuse.error();
  vocabulary_.ignore_merges = *ignore;
  vocabulary_.fuses_unknown = *fuse;
  return Done{};
}

Status JsonReader::ReadNormalizer(const json::value& value, const std::string& path) {
  const Result<const json::object*> step = AsObject(value, path);
  if (!step) return step.error();
  const Result<std::string_view> type = StringAt(**step, "type", path);
  if (!type) return type.error();
  if (*type == "Sequence") {
    const Result<const json::array*> steps = ArrayAt(**step, "normalizers", path);
    if (!steps) return steps.error();
    if (*steps == nullptr) return Wrong(path + ".normalizers", "must be an array");
    for (std::size_t i = 0; i < (*steps)->size(); ++i) {
      const Status read = ReadNormalizer((**steps)[i], Indexed(path + ".normalizers", i));
      if (!read) return read;
    }
    return Done{};
  }
  if (*type == "NFC") {
    vocabulary_.composes_nfc = true;
    return Done{};
  }
  if (*type == "Prepend") {
    const Result<std::string_view> prepend = StringAt(**step, "prepend", path);
    if (!prepend) return prepend.error();
    if (*prepend != kVisibleSpace) {
      return Unsupported(path + ".prepend", "a prefix other than U+2581");
    }
    vocabulary_.space_prefix = SpacePrefix::kAfterSpecial;
    has_space_step_ = true;
    return Done{};
  }
  if (*type == "Replace") return ReadReplacement(**step, path);
  return Unsupported(path + ".type", "normalizer " + Quoted(*type));
}

Status JsonReader::ReadReplacement(const json::object& step, const std::string& path) {
  const Result<std::string_view> content = StringAt(step, "content", path);
  if (!content) return content.error();
  const json::value* pattern = Member(step, "pattern");
  if (pattern == nullptr || !pattern->is_object()) {
    return Wrong(path + ".pattern", "must be an object");
  }
  if (Member(pattern->get_object(), "Regex") != nullptr) {
    return Unsupported(path + ".pattern.Regex", "replacing by an expression");
  }
  const Result<std::string_view> text =
      StringAt(pattern->get_object(), "String", path + ".pattern");
  if (!text) return text.error();
  if (text->empty()) return Wrong(path + ".pattern.String", "must not be empty");
  if (*text == " " && *content == kVisibleSpace) {
    visible_spaces_ = true;
    return Done{};
  }
  // A replacement that grows the text could grow it without bound together with the next one.
  if (content->size() > text->size()) {
    return Unsupported(path + ".content", "a replacement longer than what it replaces");
  }
  if (vocabulary_.replacements.size() == kMaxReplacements) {
    return Unsupported(path, "a normalizer of over 16 replacements");
  }
  vocabulary_.replacements.emplace_back(*text, *content);
  return Done{};
}

Status JsonReader::AddStage(std::string_view pattern, SplitBehavior behavior, bool inverted,
                            const std::string& path) {
  if (byte_level_) return Unsupported(path, "a step after ByteLevel");
  if (++num_stages_ > kMaxStages) return Unsupported(path, "a pre-tokenizer of over 32 steps");
  return vocabulary_.pre_tokenizer.AddStage(pattern, behavior, inverted, path);
}

Status JsonReader::ReadPreTokenizer(const json::value& value, const std::string& path) {
  const Result<const json::object*> step = AsObject(value, path);
  if (!step) return step.error();
  const Result<std::string_view> type = StringAt(**step, "type", path);
  if (!type) return type.error();
  if (*type == "Sequence") {
    const Result<const json::array*> steps = ArrayAt(**step, "pretokenizers", path);
    if (!steps) return steps.error();
    if (*steps == nullptr) return Wrong(path + ".pretokenizers", "must be an array");
    for (std::size_t i = 0; i < (*steps)->size(); ++i) {
      const Status read = ReadPreTokenizer((**steps)[i], Indexed(path + ".pretokenizers", i));
      if (!read) return read;
    }
    return Done{};
  }
  if (*type == "Split") return ReadSplit(**step, path);
  if (*type == "ByteLevel") return ReadByteLevel(**step, path);
  if (*type == "Metaspace") return ReadMetaspace(**step, path);
  if (*type == "Digits") {
    const Result<bool> individual = BoolAt(**step, "individual_digits", false, path);
    if (!individual) return individual.error();
    return AddStage(*individual ? "\\p{N}" : "\\p{N}+", SplitBehavior::kIsolated, false, path);
  }
  return Unsupported(path + ".type", "pre-tokenizer " + Quoted(*type));
}

Status JsonReader::ReadSplit(const json::object& step, const std::string& path) {
  const json::value* pattern = Member(step, "pattern");
  if (pattern == nullptr || !pattern->is_object()) {
    return Wrong(path + ".pattern", "must be an object");
  }
  const json::object& choice = pattern->get_object();
  const bool literal = Member(choice, "String") != nullptr;
  const Result<std::string_view> text =
      StringAt(choice, literal ? "String" : "Regex", path + ".pattern");
  if (!text) return text.error();
  const Result<std::string_view> name = StringAt(step, "behavior", path);
  if (!name) return name.error();
  const Result<bool> inverted = BoolAt(step, "invert", false, path);
  if (!inverted) return inverted.error();
  struct Named {
    std::string_view name;
    SplitBehavior behavior;
  };
  constexpr Named kBehaviors[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  };
  for (const Named& named : kBehaviors) {
    if (named.name != *name) continue;
    return AddStage(literal ? LiteralPattern(*text) : std::string(*text), named.behavior, *inverted,
                    path + ".pattern");
  }
  return Unsupported(path + ".behavior", "behaviour " + Quoted(*name));
}

Status JsonReader::ReadByteLevel(const json::object& step, const std::string& path) {
  const Result<bool> prefix = BoolAt(step, "add_prefix_space", true, path);
  if (!prefix) return prefix.error();
  const Result<bool> use_regex = BoolAt(step, "use_regex", true, path);
  if (!use_regex) return use_regex.error();
  if (*prefix) {
    // After another step the prefix would go to each of its pieces.
    if (num_stages_ > 0) return Unsupported(path + ".add_prefix_space", "a prefix on every piece");
    vocabulary_.space_prefix = SpacePrefix::kAfterSpecial;
    vocabulary_.prefix_unless_present = true;
  }
  if (*use_regex) {
    const Status added =
        AddStage(PreTokenizer::Gpt2Pattern(), SplitBehavior::kIsolated, false, path);
    if (!added) return added;
  }
  if (byte_level_) return Unsupported(path, "a step after ByteLevel");
  byte_level_ = true;
  return Done{};
}

Status JsonReader::ReadMetaspace(const json::object& step, const std::string& path) {
  const Result<std::string_view> replacement = StringAt(step, "replacement", path);
  if (!replacement) return replacement.error();
  if (*replacement != kVisibleSpace) {
    return Unsupported(path + ".replacement", "a replacement other than U+2581");
  }
  if (num_stages_ > 0) return Unsupported(path, "Metaspace after another step");
  const Result<bool> old_prefix = BoolAt(step, "add_prefix_space", true, path);
  if (!old_prefix) return old_prefix.error();
  std::string_view scheme = *old_prefix ? "always" : "never";
  if (Member(step, "prepend_scheme") != nullptr) {
    const Result<std::string_view> given = StringAt(step, "prepend_scheme", path);
    if (!given) return given.error();
    scheme = *given;
  }
  if (scheme == "always") {
    vocabulary_.space_prefix = SpacePrefix::kAfterSpecial;
  } else if (scheme == "first") {
    vocabulary_.space_prefix = SpacePrefix::kAtStart;
  } else if (scheme != "never") {
    return Unsupported(path + ".prepend_scheme", "scheme " + Quoted(scheme));
  }
  vocabulary_.prefix_unless_present = true;
  visible_spaces_ = true;
  has_space_step_ = true;
  const Result<bool> split = BoolAt(step, "split", true, path);
  if (!split) return split.error();
  if (!*split) return Done{};
  return AddStage(kVisibleSpace, SplitBehavior::kMergedWithNext, false, path);
}

Status JsonReader::CheckDecoder(const json::value& value, const std::string& path) {
  const Result<const json::object*> step = AsObject(value, path);
  if (!step) return step.error();
  const Result<std::string_view> type = StringAt(**step, "type", path);
  if (!type) return type.error();
  if (*type == "Sequence") {
    const Result<const json::array*> steps = ArrayAt(**step, "decoders", path);
    if (!steps) return steps.error();
    if (*steps == nullptr) return Wrong(path + ".decoders", "must be an array");
    for (std::size_t i = 0; i < (*steps)->size(); ++i) {
      const Status checked = CheckDecoder((**steps)[i], Indexed(path + ".decoders", i));
      if (!checked) return checked;
    }
    return Done{};
  }
  // These undo what the encoding steps did, as TokenBytes does by itself.
  for (const std::string_view known :
       {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}) {
    if (*type == known) return Done{};
  }
  return Unsupported(path + ".type", "decoder " + Quoted(*type));
}

Status JsonReader::ChooseKind() {
  const Result<bool> byte_fallback = BoolAt(*model_, "byte_fallback", false, "model");
  if (!byte_fallback) return byte_fallback.error();
  byte_fallback_ = *byte_fallback;
  if (byte_level_) {
    if (visible_spaces_ || has_space_step_) {
      return Unsupported("normalizer", "ByteLevel together with visible spaces (U+2581)");
    }
    vocabulary_.kind = Vocabulary::Kind::kByteLevel;
    vocabulary_.kind_name = "BPE (tokenizer.json)";
    return Done{};
  }
  if (!visible_spaces_) {
    return Unsupported("pre_tokenizer",
                       "BPE with neither a ByteLevel step nor visible spaces (U+2581)");
  }
  vocabulary_.kind = Vocabulary::Kind::kSentencePiece;
  vocabulary_.kind_name = byte_fallback_ ? "SPM (tokenizer.json)"
                                         : "SPM without byte fallback "
                                           "(tokenizer.json)";
  return Done{};
}

Result<JsonReader::AddedToken> JsonReader::ReadAddedToken(const json::value& value,
                                                          const std::string& path) {
  const Result<const json::object*> object = AsObject(value, path);
  if (!object) return object.error();
  const json::value* id = Member(**object, "id");
  if (id == nullptr) return Wrong(path + ".id", "is missing");
  const Result<std::int32_t> parsed = IdOf(*id, path + ".id");
  if (!parsed) return parsed.error();
  const Result<std::string_view> content = StringAt(**object, "content", path);
  if (!content) return content.error();
  if (content->empty()) return Wrong(path + ".content", "the token is empty");
  AddedToken token = {.id = *parsed, .content = *content};
  struct Flag {
    std::string_view name;
    bool* target;
  };
  bool single_word = false;
  bool normalized = false;  // Special tokens are found in the text as given, either way.
  for (const Flag& flag : {Flag{"special", &token.special}, Flag{"lstrip", &token.strips_left},
                           Flag{"rstrip", &token.strips_right}, Flag{"single_word", &single_word},
                           Flag{"normalized", &normalized}}) {
    const Result<bool> given = BoolAt(**object, flag.name, false, path);
    if (!given) return given.error();
    *flag.target = *given;
  }
  if (single_word) return Unsupported(path + ".single_word", "a token of whole words only");
  return token;
}

Status JsonReader::ReadAddedTokens(const json::object& root) {
  const Result<const json::array*> tokens = ArrayAt(root, "added_tokens", "tokenizer.json");
  if (!tokens) return tokens.error();
  if (*tokens == nullptr) return Done{};
  if ((*tokens)->size() > kMaxTokens) return Wrong("added_tokens", "too many tokens");
  for (std::size_t i = 0; i < (*tokens)->size(); ++i) {
    Result<AddedToken> token = ReadAddedToken((**tokens)[i], Indexed("added_tokens", i));
    if (!token) return token.error();
    added_.push_back(*token);
  }
  return Done{};
}

Status JsonReader::PlaceToken(std::int32_t id, std::string_view name, const std::string& path) {
  if (static_cast<std::size_t>(id) >= names_.size()) {
    return Wrong(path, "id " + std::to_string(id) + " leaves more than " +
                           std::to_string(kMaxHoles) + " numbers unused");
  }
  std::string_view& place = names_[static_cast<std::size_t>(id)];
  if (!place.empty() && place != name) {
    return Wrong(path,
                 "id " + std::to_string(id) + " is both " + Quoted(place) + " and " + Quoted(name));
  }
  place = name;
  return Done{};
}

Status JsonReader::ReadTokens() {
  const json::value* vocab = Member(*model_, "vocab");
  if (vocab == nullptr || !vocab->is_object()) return Wrong("model.vocab", "must be an object");
  const json::object& entries = vocab->get_object();
  if (entries.empty()) return Wrong("model.vocab", "the vocabulary is empty");
  if (entries.size() > kMaxTokens) return Wrong("model.vocab", "too many tokens");
  std::size_t num_bytes = 0;
  names_.resize(std::min(kMaxTokens, entries.size() + added_.size() + kMaxHoles));
  std::int32_t last = -1;
  for (const auto& entry : entries) {
    const std::string_view name(entry.key().data(), entry.key().size());
    if (name.empty()) return Wrong("model.vocab", "a token is empty");
    const Result<std::int32_t> id = IdOf(entry.value(), "model.vocab");
    if (!id) return Wrong("model.vocab." + Quoted(name), "must be an id of the vocabulary");
    const Status placed = PlaceToken(*id, name, "model.vocab");
    if (!placed) return placed;
    last = std::max(last, *id);
    num_bytes += name.size();
  }
  for (std::size_t i = 0; i < added_.size(); ++i) {
    const Status placed =
        PlaceToken(added_[i].id, added_[i].content, Indexed("added_tokens", i) + ".id");
    if (!placed) return placed;
    last = std::max(last, added_[i].id);
    num_bytes += added_[i].content.size();
  }
  names_.resize(static_cast<std::size_t>(last) + 1);
  vocabulary_.names.Reserve(names_.size(), num_bytes);
  vocabulary_.types.reserve(names_.size());
  for (const std::string_view name : names_) {
    vocabulary_.names.Append(name);
    vocabulary_.types.push_back(name.empty() ? TokenType::kUnused : TokenType::kNormal);
  }
  const std::int32_t repeated = vocabulary_.names.BuildIndex();
  if (repeated >= 0) {
    return Wrong("model.vocab", "token " + Quoted(vocabulary_.names[repeated]) + " has two ids, " +
                                    std::to_string(repeated) + " among them");
  }
  vocabulary_.strips_left.assign(names_.size(), false);
  vocabulary_.strips_right.assign(names_.size(), false);
  for (const AddedToken& token : added_) {
    const std::size_t idx = static_cast<std::size_t>(token.id);
    vocabulary_.types[idx] = token.special ? TokenType::kControl : TokenType::kUserDefined;
    vocabulary_.strips_left[idx] = token.strips_left;
    vocabulary_.strips_right[idx] = token.strips_right;
  }
  if (Member(*model_, "unk_token") == nullptr) return Done{};
  const Result<std::string_view> unknown = StringAt(*model_, "unk_token", "model");
  if (!unknown) return unknown.error();
  vocabulary_.unknown = vocabulary_.names.Find(*unknown);
  if (vocabulary_.unknown < 0) {
    return Wrong("model.unk_token", Quoted(*unknown) + " is not in the vocabulary");
  }
  vocabulary_.types[static_cast<std::size_t>(vocabulary_.unknown)] = TokenType::kUnknown;
  return Done{};
}

Status JsonReader::ReadMerges() {
  const Result<const json::array*> found = ArrayAt(*model_, "merges", "model");
  if (!found) return found.error();
  if (*found == nullptr) return Wrong("model.merges", "must be an array");
  const json::array& merges = **found;
  if (merges.size() > kMaxMerges) return Wrong("model.merges", "too many merges");
  vocabulary_.merges.Reserve(merges.size());
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const json::value& merge = merges[rank];
    std::string_view left;
    std::string_view right;
    if (merge.is_string()) {
      const std::string_view text = View(merge.get_string());
      const std::size_t space = text.find(' ');
      if (space != std::string_view::npos) {
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
    } else if (merge.is_array() && merge.get_array().size() == 2 &&
               merge.get_array()[0].is_string() && merge.get_array()[1].is_string()) {
      left = View(merge.get_array()[0].get_string());
      right = View(merge.get_array()[1].get_string());
    }
    if (left.empty() || right.empty()) {
      return Wrong(Indexed("model.merges", rank), "must be two pieces");
    }
    const Status added = AddMerge(vocabulary_, left, right, rank, "model.merges");
    if (!added) return added;
  }
  return Done{};
}

Status JsonReader::ReadPostProcessor(const json::value& value, const std::string& path) {
  const Result<const json::object*> step = AsObject(value, path);
  if (!step) return step.error();
  const Result<std::string_view> type = StringAt(**step, "type", path);
  if (!type) return type.error();
  if (*type == "ByteLevel") return Done{};  // Concerns offsets only.
  if (*type == "TemplateProcessing") return ReadTemplate(**step, path);
  if (*type != "Sequence") return Unsupported(path + ".type", "post-processor " + Quoted(*type));
  const Result<const json::array*> steps = ArrayAt(**step, "processors", path);
  if (!steps) return steps.error();
  if (*steps == nullptr) return Wrong(path + ".processors", "must be an array");
  for (std::size_t i = 0; i < (*steps)->size(); ++i) {
    const Status read = ReadPostProcessor((**steps)[i], Indexed(path + ".processors", i));
    if (!read) return read;
  }
  return Done{};
}

Status JsonReader::ReadTemplate(const json::object& step, const std::string& path) {
  const Result<const json::array*> single = ArrayAt(step, "single", path);
  if (!single) return single.error();
  if (*single == nullptr) return Wrong(path + ".single", "must be an array");
  bool after_text = false;
  for (std::size_t i = 0; i < (*single)->size(); ++i) {
    const std::string item_path = Indexed(path + ".single", i);
    const Result<const json::object*> item = AsObject((**single)[i], item_path);
    if (!item) return item.error();
    if (Member(**item, "Sequence") != nullptr) {
      if (after_text) return Unsupported(item_path, "a template that repeats its text");
      after_text = true;
      continue;
    }
    const json::value* special = Member(**item, "SpecialToken");
    if (special == nullptr || !special->is_object()) {
      return Wrong(item_path, "must be a Sequence or a SpecialToken");
    }
    const Result<std::string_view> name =
        StringAt(special->get_object(), "id", item_path + ".SpecialToken");
    if (!name) return name.error();
    const std::int32_t id = vocabulary_.names.Find(*name);
    if (id < 0) {
      return Wrong(item_path + ".SpecialToken.id", Quoted(*name) + " is not in the vocabulary");
    }
    (after_text ? vocabulary_.suffix_ids : vocabulary_.prefix_ids).push_back(id);
  }
  if (!after_text) return Wrong(path + ".single", "has no Sequence");
  return Done{};
}

// A token's name: a string, or an object with the string under "content".
Status JsonReader::ReadNamedToken(const json::object& config, std::string_view name,
                                  std::int32_t& id) {
  const json::value* value = Member(config, name);
  if (value == nullptr) return Done{};
  const std::string path = "tokenizer_config.json: " + std::string(name);
  if (value->is_object()) value = Member(value->get_object(), "content");
  if (value == nullptr || !value->is_string()) return Wrong(path, "must be a token");
  const std::string_view text = View(value->get_string());
  id = vocabulary_.names.Find(text);
  if (id < 0) return Wrong(path, Quoted(text) + " is not in the vocabulary");
  return Done{};
}

// "add_bos_token" and "add_eos_token" overrule the post-processor.
Status JsonReader::ReadAddFlag(const json::object& config, std::string_view name, std::int32_t id,
                               std::vector<std::int32_t>& ids) {
  if (Member(config, name) == nullptr) return Done{};
  const Result<bool> adds = BoolAt(config, name, false, "tokenizer_config.json");
  if (!adds) return adds.error();
  const auto place = std::find(ids.begin(), ids.end(), id);
  if (*adds && id < 0) {
    return Wrong("tokenizer_config.json: " + std::string(name), "is true, but there is no token");
  }
  if (*adds && place == ids.end()) ids.push_back(id);
  if (!*adds && place != ids.end()) ids.erase(place);
  return Done{};
}

Status JsonReader::ReadConfig(const json::object& config) {
  Status status = ReadNamedToken(config, "bos_token", vocabulary_.bos);
  if (status) status = ReadNamedToken(config, "eos_token", vocabulary_.eos);
  if (!status) return status;
  if (vocabulary_.bos < 0 && !vocabulary_.prefix_ids.empty()) {
    vocabulary_.bos = vocabulary_.prefix_ids.front();
  }
  status = ReadAddFlag(config, "add_bos_token", vocabulary_.bos, vocabulary_.prefix_ids);
  if (status) {
    status = ReadAddFlag(config, "add_eos_token", vocabulary_.eos, vocabulary_.suffix_ids);
  }
  if (status) status = ReadChatTemplate(config);
  return status;
}

// One template, or a list of named ones: "default", else the first.
Status JsonReader::ReadChatTemplate(const json::object& config) {
  const json::value* value = Member(config, "chat_template");
  if (value == nullptr) return Done{};
  const std::string path = "tokenizer_config.json: chat_template";
  if (value->is_string()) {
    vocabulary_.chat_template = View(value->get_string());
    return Done{};
  }
  if (!value->is_array()) return Wrong(path, "must be a string or a list of named templates");
  const json::array& named = value->get_array();
  bool has_default = false;
  for (std::size_t i = 0; i < named.size(); ++i) {
    const Result<const json::object*> item = AsObject(named[i], Indexed(path, i));
    if (!item) return item.error();
    const Result<std::string_view> name = StringAt(**item, "name", Indexed(path, i));
    if (!name) return name.error();
    const Result<std::string_view> source = StringAt(**item, "template", Indexed(path, i));
    if (!source) return source.error();
    if (i == 0 || (*name == "default" && !has_default)) vocabulary_.chat_template = *source;
    has_default = has_default || *name == "default";
  }
  return Done{};
}

}  // namespace

Result<Vocabulary> ReadTokenizerJson(std::string_view tokenizer_json,
                                     std::string_view config_json) {
  return JsonReader().Read(tokenizer_json, config_json);
}

}  // namespace kvrm
