// SPDX-License-Identifier: Apache-2.0
// Small vocabularies made in code, for tests and fuzzing: one of each kind, as a GGUF image and as
// tokenizer.json.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/gguf_writer.h"
#include "model/vocabulary.h"

namespace kvrm {

// Byte-level: the 256 bytes, ten merges, and three special tokens.
//   0..255 bytes in order; 256 "he", 257 "ll", 258 "hell", 259 "hello", 260 " w", 261 " wo",
//   262 "aa", 263 "aaaa", 264 "or", 265 "12"; 266 <|begin|>, 267 <|eot_id|>, 268 <tool>
//   (user-defined)
struct SmallByteLevel {
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types;
  std::vector<std::string> merges;

  SmallByteLevel() {
    const auto spelled = [](std::string_view bytes) {
      std::string out;
      AppendByteSpelling(out, bytes);
      return out;
    };
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(spelled(std::string(1, static_cast<char>(byte))));
    }
    const std::pair<std::string, std::string> pairs[] = {
        {"h", "e"},  {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {" ", "w"},
        {" w", "o"}, {"a", "a"}, {"aa", "aa"}, {"o", "r"},    {"1", "2"}};
    for (const auto& [left, right] : pairs) {
      tokens.push_back(spelled(left + right));
      merges.push_back(spelled(left) + " " + spelled(right));
    }
    types.assign(tokens.size(), 1);
    tokens.insert(tokens.end(), {"<|begin|>", "<|eot_id|>", "<tool>"});
    types.insert(types.end(), {3, 3, 4});
  }

  GgufWriter Gguf(const std::string& pre = "gpt-2") const {
    GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", "gpt2");
    writer.AddString("tokenizer.ggml.pre", pre);
    writer.AddStrings("tokenizer.ggml.tokens", tokens);
    writer.AddArray("tokenizer.ggml.token_type", GgufType::kInt32, types);
    writer.AddStrings("tokenizer.ggml.merges", merges);
    writer.AddUint("tokenizer.ggml.bos_token_id", 266);
    writer.AddUint("tokenizer.ggml.eos_token_id", 267);
    writer.AddBool("tokenizer.ggml.add_bos_token", true);
    return writer;
  }
};

// SentencePiece: 0 <unk>, 1 <s>, 2 </s>, 3..258 the bytes, then the pieces below by falling score,
// then 4 control tokens <|user|> <|assistant|> <|end|> <|pad|>.
struct SmallSentencePiece {
  static constexpr int kFirstPiece = 259;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<std::int32_t> types;

  SmallSentencePiece() {
    Add("<unk>", 0, 2);
    Add("<s>", 0, 3);
    Add("</s>", 0, 3);
    for (int byte = 0; byte < 256; ++byte) {
      static constexpr char kHex[] = "0123456789ABCDEF";
      Add(std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">", 0, 6);
    }
    const std::string space(kVisibleSpace);
    float score = 0;
    for (const std::string& piece : {space + "h",        std::string("el"),
                                     space + "hel",      space + "hello",
                                     space + "w",        space + space,
                                     std::string("ab"),  std::string("bc"),
                                     std::string("abc"), space,
                                     std::string("h"),   std::string("e"),
                                     std::string("l"),   std::string("o"),
                                     std::string("w"),   std::string("a"),
                                     std::string("b"),   std::string("c"),
                                     std::string("<"),   std::string("s"),
                                     std::string(">"),   std::string("\xC3\xA9"),
                                     std::string("lo")}) {
      Add(piece, score, 1);
      score -= 1;
    }
    for (const char* const name : {"<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"}) {
      Add(name, 0, 3);
    }
  }

  void Add(const std::string& token, float score, std::int32_t type) {
    tokens.push_back(token);
    scores.push_back(score);
    types.push_back(type);
  }

  GgufWriter Gguf() const {
    GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", "llama");
    writer.AddStrings("tokenizer.ggml.tokens", tokens);
    writer.AddArray("tokenizer.ggml.scores", GgufType::kFloat32, scores);
    writer.AddArray("tokenizer.ggml.token_type", GgufType::kInt32, types);
    writer.AddUint("tokenizer.ggml.bos_token_id", 1);
    writer.AddUint("tokenizer.ggml.eos_token_id", 2);
    writer.AddUint("tokenizer.ggml.unknown_token_id", 0);
    return writer;
  }
};

// A byte-level tokenizer.json with everything this program reads in it; 14 tokens.
constexpr std::string_view kSmallJson = R"({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 11, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 12, "content": "</s>", "single_word": false, "lstrip": true, "rstrip": true,
     "normalized": false, "special": true},
    {"id": 13, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": true, "special": false}],
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
    {"type": "Replace", "pattern": {"String": "--"}, "content": "-"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\d|\\s?\\p{L}+"}, "behavior": "Isolated",
     "invert": false},
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
  "post_processor": {"type": "Sequence", "processors": [
    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
    {"type": "TemplateProcessing",
     "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
     "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [11], "tokens": ["<s>"]}}}]},
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
              "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    "vocab": {"a": 0, "b": 1, "c": 2, "-": 3, "\u0120": 4, "1": 5, "\u00c3": 6, "\u00a9": 7,
              "ab": 8, "abc": 9, "\u00c3\u00a9": 10},
    "merges": ["a b", ["ab", "c"], "\u00c3 \u00a9"]}
})";
constexpr std::string_view kSmallConfig = R"({"bos_token": "<s>",
  "eos_token": {"content": "</s>", "lstrip": false}, "add_bos_token": true,
  "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})";

}  // namespace kvrm
