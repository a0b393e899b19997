// SPDX-License-Identifier: Apache-2.0
// kvrm tokenize and kvrm detokenize: what a model's vocabulary makes of a text, and back.
#include <boost/json/serialize.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/weights.h"

namespace kvrm {

namespace {

// Merging takes some 50 bytes of memory a byte of text.
constexpr std::uint64_t kMaxTextBytes = std::uint64_t{256} << 20;
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{8} << 20;

struct TokenizeArgs {
  std::string model;
  std::string text;
  std::string file;
  bool ids = false;
  bool json = false;
  bool special = false;
  bool no_bos = false;
};

struct DetokenizeArgs {
  std::string model;
  std::vector<std::string> ids;
  bool special = false;
};

Tokenizer LoadFolder(const std::string& folder) {
  const std::string json = OrThrow(ReadFile(folder + "/tokenizer.json", kMaxTokenizerJsonBytes));
  const std::string config_path = folder + "/tokenizer_config.json";
  std::string config;
  if (std::filesystem::exists(config_path))
    config = OrThrow(ReadFile(config_path, kMaxConfigBytes));
  Result<Tokenizer> tokenizer = Tokenizer::FromHuggingFace(json, config);
  if (!tokenizer) throw StartError(folder + ": " + tokenizer.error().message);
  return std::move(tokenizer).value();
}

// Calls `use` with the tokenizer of a GGUF file (tensors are not needed), a folder with a
// tokenizer.json, or, without a name, the demo model.
template <typename Use>
void WithTokenizer(const std::string& model, const Use& use) {
  if (model.empty()) {
    const Model demo = LoadModel("");
    use(demo.tokenizer());
    return;
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(model, ignored)) {
    use(LoadFolder(model));
    return;
  }
  const GgufFile file = OrThrow(GgufFile::Open(model));
  const Result<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  if (!tokenizer) throw StartError(model + ": " + tokenizer.error().message);
  use(*tokenizer);
}

std::string ReadStdin() {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const std::size_t got = std::fread(buffer, 1, sizeof(buffer), stdin);
    if (got == 0) break;
    text.append(buffer, got);
    if (text.size() > kMaxTextBytes) throw StartError("standard input: longer than 256 MiB");
  }
  if (std::ferror(stdin) != 0) throw StartError("standard input: cannot be read");
  return text;
}

// What a person can read on one line: control characters and bytes that are no text escaped.
std::string Escaped(std::string_view bytes) {
  std::string out;
  for (std::size_t pos = 0; pos < bytes.size();) {
    const Utf8Char c = DecodeUtf8(bytes, pos);
    const bool control = c.code_point < 0x20 || (c.code_point >= 0x7F && c.code_point < 0xA0);
    if (c.state == Utf8State::kValid && !control && c.code_point != '\\') {
      out.append(bytes.substr(pos, c.size));
    } else if (c.code_point == '\n') {
      out += "\\n";
    } else if (c.code_point == '\t') {
      out += "\\t";
    } else if (c.code_point == '\\') {
      out += "\\\\";
    } else {
      for (const char byte : bytes.substr(pos, c.size)) {
        char hex[5];
        std::snprintf(hex, sizeof(hex), "\\x%02X",
                      static_cast<unsigned>(static_cast<unsigned char>(byte)));
        out += hex;
      }
    }
    pos += c.size;
  }
  return out;
}

void PrintJson(const std::vector<std::int32_t>& ids) {
  json::array tokens(ids.begin(), ids.end());
  json::object answer;
  answer["tokens"] = std::move(tokens);
  answer["count"] = ids.size();
  std::printf("%s\n", json::serialize(answer).c_str());
}

void PrintIds(const std::vector<std::int32_t>& ids) {
  std::string line;
  for (const std::int32_t id : ids) {
    line += (line.empty() ? "" : " ") + std::to_string(id);
  }
  std::printf("%s\n", line.c_str());
}

void PrintTable(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  for (const std::int32_t id : ids) {
    const bool control = tokenizer.IsControl(id);
    const std::string piece = Escaped(tokenizer.TokenBytes(id, true));
    std::printf("%8d  %s%s\n", id, control ? piece.c_str() : ("'" + piece + "'").c_str(),
                control ? "  (control)" : "");
  }
  std::printf("%zu tokens, %s\n", ids.size(), std::string(tokenizer.kind()).c_str());
}

void Tokenize(const TokenizeArgs& args, bool has_text) {
  if (has_text && !args.file.empty()) throw StartError("give either TEXT or --file, not both");
  const std::string text = has_text             ? args.text
                           : !args.file.empty() ? OrThrow(ReadFile(args.file, kMaxTextBytes))
                                                : ReadStdin();
  WithTokenizer(args.model, [&](const Tokenizer& tokenizer) {
    const EncodeOptions options = {.add_special = !args.no_bos, .parse_special = args.special};
    const std::vector<std::int32_t> ids = tokenizer.Encode(text, options);
    if (args.json) {
      PrintJson(ids);
    } else if (args.ids || !IsTerminal(1)) {
      PrintIds(ids);
    } else {
      PrintTable(tokenizer, ids);
    }
  });
}

void Detokenize(const DetokenizeArgs& args) {
  std::string words;
  for (const std::string& word : args.ids) {
    words += word + " ";
  }
  const std::vector<std::int32_t> ids = ParseTokenIds(args.ids.empty() ? ReadStdin() : words);
  WithTokenizer(args.model, [&](const Tokenizer& tokenizer) {
    for (const std::int32_t id : ids) {
      if (id < 0 || static_cast<std::uint32_t>(id) >= tokenizer.num_tokens()) {
        throw StartError("token id " + std::to_string(id) + ": the vocabulary has " +
                         std::to_string(tokenizer.num_tokens()) + " tokens");
      }
    }
    const std::string text = tokenizer.Decode(ids, args.special);
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (IsTerminal(1)) std::putchar('\n');
  });
}

}  // namespace

void AddTokenizeCommands(CLI::App& app) {
  CLI::App* tokenize = app.add_subcommand("tokenize", "show the tokens of a text");
  auto args = std::make_shared<TokenizeArgs>();
  AddModelFlag(*tokenize, &args->model);
  CLI::Option* text = tokenize->add_option("TEXT", args->text, "the text (default: stdin)");
  tokenize->add_option("--file", args->file, "read the text from a file");
  tokenize->add_flag("--ids", args->ids, "print ids alone on one line, as in a pipe");
  tokenize->add_flag("--json", args->json, "print {\"tokens\":[...],\"count\":n}");
  tokenize->add_flag("--special", args->special, "take special tokens written out as such");
  tokenize->add_flag("--no-bos", args->no_bos, "add no beginning or end token");
  tokenize->footer("A GGUF file of a vocabulary alone will do, or a folder with tokenizer.json.");
  tokenize->callback([args, text] { Tokenize(*args, text->count() > 0); });

  CLI::App* detokenize = app.add_subcommand("detokenize", "show the text of token ids");
  auto back = std::make_shared<DetokenizeArgs>();
  AddModelFlag(*detokenize, &back->model);
  detokenize->add_option("ID", back->ids, "token ids (default: stdin)");
  detokenize->add_flag("--special", back->special, "write special tokens out");
  detokenize->callback([back] { Detokenize(*back); });
}

}  // namespace kvrm
