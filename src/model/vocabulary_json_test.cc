// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include "base/json.h"
#include "model/small_vocabulary.h"
#include "model/tokenizer.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr EncodeOptions kPlain = {.add_special = false, .parse_special = false};
constexpr EncodeOptions kTrusted = {.add_special = false, .parse_special = true};

json::value SmallTree() {
  return OrThrow(ParseJson(kSmallJson));
}

Result<Tokenizer> Make(const json::value& tree, std::string_view config = kSmallConfig) {
  return Tokenizer::FromHuggingFace(json::serialize(tree), config);
}

std::string ErrorOf(const json::value& tree, std::string_view config = kSmallConfig) {
  const Result<Tokenizer> tokenizer = Make(tree, config);
  return tokenizer ? "accepted" : tokenizer.error().message;
}

// The value at a JSON pointer such as "/model/vocab".
json::value& At(json::value& tree, std::string_view pointer) {
  return tree.at_pointer(pointer);
}

TEST(TokenizerJson, ReadsAByteLevelModel) {
  const Tokenizer t = OrThrow(Make(SmallTree()));
  EXPECT_EQ(t.kind(), "BPE (tokenizer.json)");
  EXPECT_EQ(t.num_tokens(), 14u);
  EXPECT_EQ(t.bos(), 11);
  EXPECT_EQ(t.eos(), 12);
  EXPECT_TRUE(t.adds_bos());
  EXPECT_EQ(t.stop_ids(), (Ids{12}));
  EXPECT_EQ(t.chat_template(), "D");
  EXPECT_EQ(t.Encode("abc", kPlain), (Ids{9}));
  EXPECT_EQ(t.Encode("abc", {}), (Ids{11, 9}));
  EXPECT_EQ(t.Encode("11", kPlain), (Ids{5, 5}));
  // NFC and the replacement come before splitting.
  EXPECT_EQ(t.Encode("--", kPlain), (Ids{3}));
  // The letter is composed of "e" and the accent; "e" alone has no token.
  EXPECT_EQ(t.Encode("e\xCC\x81", kPlain), (Ids{10}));
  EXPECT_EQ(t.Encode("a<tool>a", kPlain), (Ids{0, 13, 0}));
  EXPECT_EQ(t.Encode("a </s> b", kTrusted), (Ids{0, 12, 1}));
  EXPECT_EQ(t.Decode(Ids{11, 10, 13, 12}), "\xC3\xA9<tool>");
}

TEST(TokenizerJson, WorksWithoutAConfig) {
  const Tokenizer t = OrThrow(Make(SmallTree(), ""));
  EXPECT_EQ(t.bos(), 11);
  EXPECT_EQ(t.eos(), -1);
  // "</s>" is an end by its name.
  EXPECT_EQ(t.stop_ids(), (Ids{12}));
  EXPECT_EQ(t.chat_template(), "");
}

// Where an answer is several messages, the end of one is not the answer's.
TEST(TokenizerJson, MessagesOfAnAnswerDoNotEndIt) {
  const auto with = [](std::initializer_list<const char*> names) {
    json::value tree = SmallTree();
    for (const char* name : names) {
      json::array& added = At(tree, "/added_tokens").as_array();
      const std::int64_t id = added.back().at("id").as_int64() + 1;
      added.push_back({{"id", id}, {"content", name}, {"special", true}});
    }
    return OrThrow(Make(tree)).stop_ids();
  };
  EXPECT_EQ(with({"<|end|>"}), (Ids{12, 14}));
  EXPECT_EQ(with({"<|end|>", "<|return|>"}), (Ids{12, 14, 15}));
  EXPECT_EQ(with({"<|end|>", "<|return|>", "<|call|>"}), (Ids{12, 15, 16}));
}

TEST(TokenizerJson, ConfigOverrulesThePostProcessor) {
  const Tokenizer bare = OrThrow(Make(SmallTree(), R"({"bos_token":"<s>","add_bos_token":false})"));
  EXPECT_EQ(bare.Encode("a", {}), (Ids{0}));
  EXPECT_FALSE(bare.adds_bos());
  const Tokenizer both =
      OrThrow(Make(SmallTree(), R"({"bos_token":"<s>","eos_token":"</s>","add_eos_token":true})"));
  EXPECT_EQ(both.Encode("a", {}), (Ids{11, 0, 12}));
}

// A SentencePiece-style model: 8 tokens.
json::value SmallPieces() {
  return OrThrow(ParseJson(R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true},
                     {"id": 1, "content": "<s>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
      "vocab": {"<unk>": 0, "<s>": 1, "<0x21>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "▁ab": 7},
      "merges": ["▁ a", "▁a b"]}})"));
}

TEST(TokenizerJson, ReadsASentencePieceModel) {
  const Tokenizer t = OrThrow(Make(SmallPieces(), ""));
  EXPECT_EQ(t.kind(), "SPM (tokenizer.json)");
  EXPECT_EQ(t.Encode("ab a", kPlain), (Ids{7, 6}));
  EXPECT_EQ(t.Encode("ab!??a", kPlain), (Ids{7, 2, 0, 4}));
  EXPECT_EQ(t.Encode("<s>ab", kTrusted), (Ids{1, 7}));
  EXPECT_EQ(t.Decode(Ids{7, 6, 2}), "ab a!");
  json::value apart = SmallPieces();
  At(apart, "/model/fuse_unk") = false;
  EXPECT_EQ(OrThrow(Make(apart, "")).Encode("??", kPlain), (Ids{3, 0, 0}));
  json::value no_bytes = SmallPieces();
  At(no_bytes, "/model/byte_fallback") = false;
  EXPECT_EQ(OrThrow(Make(no_bytes, "")).Encode("!", kPlain), (Ids{3, 0}));
}

TEST(TokenizerJson, MetaspacePrefixes) {
  json::value tree = SmallPieces();
  At(tree, "/normalizer") = nullptr;
  const auto encode = [&](const char* step, const char* text) {
    At(tree, "/pre_tokenizer") = OrThrow(ParseJson(step));
    return OrThrow(Make(tree, "")).Encode(text, kTrusted);
  };
  const char* always = R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always"})";
  const char* first =
      R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false})";
  const char* never = R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"never"})";
  EXPECT_EQ(encode(always, "ab<s>a"), (Ids{7, 1, 6}));
  EXPECT_EQ(encode(always, " ab"), (Ids{7}));
  EXPECT_EQ(encode(first, "ab<s>a"), (Ids{7, 1, 4}));
  EXPECT_EQ(encode(never, "ab a"), (Ids{4, 5, 6}));
}

TEST(TokenizerJson, ByteLevelPrefixesASpaceWhenAsked) {
  json::value tree = SmallTree();
  At(tree, "/pre_tokenizer") = OrThrow(ParseJson(R"({"type":"ByteLevel"})"));
  const Tokenizer t = OrThrow(Make(tree));
  EXPECT_EQ(t.Encode("abc", kPlain), (Ids{4, 9}));
  EXPECT_EQ(t.Encode(" abc", kPlain), (Ids{4, 9}));
  EXPECT_EQ(t.Decode(Ids{4, 9}), "abc");
}

TEST(TokenizerJson, SplitBehaviours) {
  json::value tree = SmallTree();
  const auto encode = [&](const char* behavior, bool invert) {
    json::value step = OrThrow(ParseJson(R"([{"type":"Split","pattern":{"String":"b"},
      "behavior":"","invert":false},
      {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}])"));
    At(step, "/0/behavior") = behavior;
    At(step, "/0/invert") = invert;
    At(tree, "/pre_tokenizer/pretokenizers") = step;
    return OrThrow(Make(tree)).Encode("abcabc", kPlain);
  };
  EXPECT_EQ(encode("Isolated", false), (Ids{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(encode("Removed", false), (Ids{0, 2, 0, 2}));
  EXPECT_EQ(encode("Removed", true), (Ids{1, 1}));
  EXPECT_EQ(encode("MergedWithPrevious", false), (Ids{8, 2, 8, 2}));
  EXPECT_EQ(encode("MergedWithNext", false), (Ids{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(encode("Contiguous", false), (Ids{0, 1, 2, 0, 1, 2}));
}

TEST(TokenizerJson, NamesWhatItDoesNotSupport) {
  struct Bad {
    const char* pointer;
    const char* value;
    const char* message;
  };
  const Bad bad[] = {
      {"/model/type", "\"Unigram\"", "model.type: tokenizer model 'Unigram' is not supported"},
      {"/model/type", "\"WordPiece\"", "model.type: tokenizer model 'WordPiece' is not supported"},
      {"/model/type", "\"WordLevel\"", "model.type: tokenizer model 'WordLevel' is not supported"},
      {"/model/dropout", "0.1", "model.dropout"},
      {"/model/continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix"},
      {"/model/unk_token", "\"<unk>\"", "model.unk_token: '<unk>' is not in the vocabulary"},
      {"/normalizer", R"({"type":"NFKC"})", "normalizer.type: normalizer 'NFKC' is not supported"},
      {"/normalizer/normalizers/0", R"({"type":"Lowercase"})", "normalizer.normalizers[0].type"},
      {"/normalizer", R"({"type":"Replace","pattern":{"Regex":"a"},"content":""})",
       "normalizer.pattern.Regex"},
      {"/normalizer", R"({"type":"Prepend","prepend":"x"})", "normalizer.prepend"},
      {"/normalizer", R"({"type":"Prepend","prepend":"▁"})", "normalizer: ByteLevel together"},
      {"/pre_tokenizer", R"({"type":"BertPreTokenizer"})",
       "pre_tokenizer.type: pre-tokenizer 'BertPreTokenizer' is not supported"},
      {"/pre_tokenizer", "null", "pre_tokenizer: BPE with neither"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Odd\"",
       "pre_tokenizer.pretokenizers[0].behavior"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", "does not compile"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\"", "must have 1 to 16384 bytes"},
      {"/pre_tokenizer/pretokenizers/2/add_prefix_space", "true", "add_prefix_space"},
      {"/pre_tokenizer/pretokenizers/0", R"({"type":"ByteLevel","add_prefix_space":false})",
       "a step after ByteLevel"},
      {"/post_processor", R"({"type":"BertProcessing"})", "post-processor 'BertProcessing'"},
      {"/decoder", R"({"type":"WordPiece"})", "decoder.type: decoder 'WordPiece'"},
      {"/added_tokens/0/single_word", "true", "added_tokens[0].single_word"},
      {"/added_tokens/0/id", "-1", "added_tokens[0].id"},
      {"/added_tokens/0/id", "0", "added_tokens[0].id: id 0 is both 'a' and '<s>'"},
      {"/added_tokens/0/id", "4194303", "leaves more than 65536 numbers unused"},
      {"/added_tokens/0/id", "4194304", "added_tokens[0].id: must be an id"},
      {"/added_tokens/0/content", "\"a\"", "model.vocab: token 'a' has two ids"},
      {"/added_tokens/0/content", "\"\"", "added_tokens[0].content: the token is empty"},
      {"/model/vocab", "{}", "model.vocab: the vocabulary is empty"},
      {"/model/vocab/a", "1", "model.vocab: id 1 is both"},
      {"/model/vocab/a", "1.5", "model.vocab.'a': must be an id of the vocabulary"},
      {"/model/vocab/a", "-1", "model.vocab.'a': must be an id of the vocabulary"},
      {"/model/vocab/a", "18446744073709551615", "model.vocab.'a': must be an id"},
      {"/model/merges/0", "\"ab\"", "model.merges[0]: must be two pieces"},
      {"/model/merges/0", "\" ab\"", "model.merges[0]: must be two pieces"},
      {"/model/merges/0", "[\"a\"]", "model.merges[0]: must be two pieces"},
      {"/model/merges/0", "\"a z\"", "model.merges[0]: 'z' is not in the vocabulary"},
      {"/model/merges/0", "\"c a\"", "model.merges[0]: 'ca' is not in the vocabulary"},
      {"/post_processor/processors/1/single/0/SpecialToken/id", "\"<x>\"",
       "single[0].SpecialToken.id: '<x>' is not in the vocabulary"},
      {"/post_processor/processors/1/single", "[]", "single: has no Sequence"},
  };
  for (const Bad& item : bad) {
    json::value tree = SmallTree();
    At(tree, item.pointer) = OrThrow(ParseJson(item.value));
    const std::string error = ErrorOf(tree);
    EXPECT_NE(error.find(item.message), std::string::npos)
        << item.pointer << " = " << item.value << "\ngot: " << error << "\nwant: " << item.message;
  }
  for (const auto& [config, message] : std::initializer_list<std::pair<const char*, const char*>>{
           {"[]", "tokenizer_config.json: must be an object"},
           {"{", "tokenizer_config.json: invalid JSON"},
           {R"({"bos_token":"<x>"})", "tokenizer_config.json: bos_token: '<x>' is not in"},
           {R"({"eos_token":7})", "tokenizer_config.json: eos_token: must be a token"},
           {R"({"eos_token":{}})", "tokenizer_config.json: eos_token: must be a token"},
           {R"({"add_eos_token":true})", "add_eos_token: is true, but there is no token"},
           {R"({"add_bos_token":1})", "add_bos_token: must be true or false"},
           {R"({"chat_template":1})", "chat_template: must be a string or a list"},
           {R"({"chat_template":[1]})", "chat_template[0]: must be an object"},
           {R"({"chat_template":[{"name":"x"}]})",
            "chat_template[0].template: must be a string"}}) {
    EXPECT_NE(ErrorOf(SmallTree(), config).find(message), std::string::npos) << config;
  }
  EXPECT_NE(Tokenizer::FromHuggingFace("", "").error().message.find("tokenizer.json: "),
            std::string::npos);
}

// Every place of a tree, as JSON pointers.
void Collect(const json::value& value, const std::string& pointer, std::vector<std::string>& out) {
  if (!pointer.empty()) out.push_back(pointer);
  if (value.is_object()) {
    for (const auto& entry : value.get_object()) {
      Collect(entry.value(), pointer + "/" + std::string(entry.key()), out);
    }
  } else if (value.is_array()) {
    for (std::size_t i = 0; i < value.get_array().size(); ++i) {
      Collect(value.get_array()[i], pointer + "/" + std::to_string(i), out);
    }
  }
}

TEST(TokenizerJson, MalformedVariantsAreRefusedOrHarmless) {
  std::vector<std::string> pointers;
  Collect(SmallTree(), "", pointers);
  const char* const replacements[] = {"null",        "true", "-1", "1e300", "\"\"",
                                      "\"\\u0000\"", "[]",   "{}", "[[]]",  "9223372036854775807"};
  std::size_t num_variants = 0;
  std::size_t num_refused = 0;
  for (const std::string& pointer : pointers) {
    for (const char* const replacement : replacements) {
      json::value tree = SmallTree();
      At(tree, pointer) = OrThrow(ParseJson(replacement));
      ++num_variants;
      const Result<Tokenizer> t = Make(tree);
      if (t) {
        for (const char* const text : {"abc --1</s><tool>", "\xC3\xA9\xFF ", ""}) {
          const Ids ids = t->Encode(text, kTrusted);
          for (const std::int32_t id : ids) {
            ASSERT_LT(static_cast<std::uint32_t>(id), t->num_tokens()) << pointer;
          }
          EXPECT_LE(t->Decode(ids, true).size(), 64u) << pointer << replacement;
        }
        continue;
      }
      ++num_refused;
      // The message names the field or, for a part that became unusable, the part.
      const std::string root = pointer.substr(1, pointer.find('/', 1) - 1);
      const std::string& message = t.error().message;
      EXPECT_TRUE(message.find(root) != std::string::npos ||
                  message.find("model.") != std::string::npos ||
                  message.find("post_processor") != std::string::npos ||
                  message.find("tokenizer_config.json") != std::string::npos)
          << pointer << " = " << replacement << ": " << message;
    }
  }
  std::printf("%zu malformed variants, %zu refused, %zu harmless\n", num_variants, num_refused,
              num_variants - num_refused);
  EXPECT_GE(num_variants, 150u);
  EXPECT_GE(num_refused, 150u);
}

TEST(TokenizerJson, TruncatedFilesAreRefused) {
  for (std::size_t size = 0; size < kSmallJson.size() - 2; size += 7) {
    EXPECT_FALSE(Tokenizer::FromHuggingFace(kSmallJson.substr(0, size), kSmallConfig)) << size;
  }
}

}  // namespace
}  // namespace kvrm
