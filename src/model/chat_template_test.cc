// SPDX-License-Identifier: Apache-2.0
// The template language against Jinja2 (testdata/templates, made by tools/template_goldens.py),
// its limits against hostile templates, and the origin of every byte.
#include "model/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>

namespace kvrm {
namespace {

namespace fs = std::filesystem;

fs::path Folder() {
  return fs::path(KVRM_SOURCE_DIR) / "testdata" / "templates";
}

std::string ReadAll(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

json::value ReadJson(const fs::path& path) {
  Result<json::value> value = ParseJson(ReadAll(path));
  CHECK(value.has_value());
  return std::move(value).value();
}

struct Case {
  std::string name;
  ChatInputs inputs;
};

std::string Str(const json::value& value) {
  return std::string(value.as_string());
}

std::vector<Case> Cases() {
  const json::value file = ReadJson(Folder() / "cases.json");
  std::vector<Case> cases;
  for (const auto& item : file.at("cases").as_object()) {
    const json::object& in = item.value().as_object();
    Case& c = cases.emplace_back();
    c.name = std::string(item.key());
    c.inputs.messages = in.at("messages").as_array();
    if (in.contains("tools")) c.inputs.tools = in.at("tools");
    if (in.contains("kwargs")) c.inputs.kwargs = in.at("kwargs").as_object();
    if (in.contains("add_generation_prompt")) {
      c.inputs.add_generation_prompt = in.at("add_generation_prompt").as_bool();
    }
    c.inputs.bos_token = Str(file.at("bos_token"));
    c.inputs.eos_token = Str(file.at("eos_token"));
    c.inputs.now_unix = file.at("now").as_int64();
  }
  return cases;
}

std::string Flat(const std::vector<RenderedPiece>& pieces) {
  std::string text;
  for (const RenderedPiece& piece : pieces)
    text += piece.text;
  return text;
}

// The text, or the error behind "error: ".
std::string RenderSource(std::string_view source, const ChatInputs& inputs = {}) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(source);
  if (!parsed) return "error: " + parsed.error().message;
  const Result<std::vector<RenderedPiece>> pieces = parsed->Render(inputs);
  return pieces ? Flat(*pieces) : "error: " + pieces.error().message;
}

ChatInputs OneMessage(std::string_view role, std::string_view content) {
  ChatInputs inputs;
  json::object message;
  message["role"] = json::string(role);
  message["content"] = json::string(content);
  inputs.messages.push_back(message);
  return inputs;
}

std::uint64_t Fnv1a(std::string_view text) {
  std::uint64_t value = 0xCBF29CE484222325u;
  for (const char c : text)
    value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return value;
}

TEST(ChatTemplate, EveryConstructRendersAsJinja2DoesIt) {
  const std::vector<Case> cases = Cases();
  int templates = 0;
  for (const auto& entry : fs::directory_iterator(Folder())) {
    if (entry.path().extension() != ".jinja") continue;
    ++templates;
    const std::string source = ReadAll(entry.path());
    fs::path expected_path = entry.path();
    const json::value expected = ReadJson(expected_path.replace_extension(".expected.json"));
    const json::object& table = expected.as_object();
    for (const Case& c : cases) {
      const json::value& wanted = table.contains("*") ? table.at("*") : table.at(c.name);
      const std::string got = RenderSource(source, c.inputs);
      SCOPED_TRACE(entry.path().filename().string() + " with " + c.name);
      if (wanted.is_null()) {
        EXPECT_EQ(got.substr(0, 12), "error: line ") << got;
      } else {
        EXPECT_EQ(got, Str(wanted));
      }
    }
  }
  EXPECT_GE(templates, 20);
}

// Real templates, where they are at hand; what Jinja2 makes of them is known by its hash.
TEST(ChatTemplate, TheCorpusRendersAsJinja2DoesIt) {
  const char* shared = std::getenv("KVRM_SHARED");
  const fs::path corpus =
      (shared != nullptr ? fs::path(shared) : fs::path(KVRM_SOURCE_DIR) / ".." / "shared") /
      "data" / "templates";
  if (!fs::exists(corpus)) GTEST_SKIP() << "no template corpus at " << corpus;
  std::map<std::string, ChatInputs> cases;
  for (Case& c : Cases())
    cases[c.name] = std::move(c.inputs);
  std::map<std::string, std::pair<int, int>> table;
  const json::value rows = ReadJson(Folder() / "corpus_hashes.json");
  for (const json::value& row : rows.as_array()) {
    const std::string file = Str(row.at(0));
    const std::string name = Str(row.at(1));
    const std::string source = ReadAll(corpus / file);
    ASSERT_FALSE(source.empty()) << file;
    const std::string got = RenderSource(source, cases.at(name));
    bool same = false;
    if (row.at(2).is_null()) {
      same = got.rfind("error: ", 0) == 0;
    } else {
      char hash[17];
      std::snprintf(hash, sizeof hash, "%016llx", static_cast<unsigned long long>(Fnv1a(got)));
      same =
          Str(row.at(2)) == hash && static_cast<std::int64_t>(got.size()) == row.at(3).as_int64();
    }
    EXPECT_TRUE(same) << file << " with " << name << "\n" << got.substr(0, 200);
    auto& [passed, all] = table[file];
    passed += same ? 1 : 0;
    ++all;
  }
  if (std::getenv("KVRM_VERBOSE") == nullptr) return;
  for (const auto& [file, counts] : table) {
    std::printf("%3d of %3d  %s\n", counts.first, counts.second, file.c_str());
  }
}

// ---- where bytes come from ----

TEST(ChatTemplate, TheRequestsTextIsNeverTrusted) {
  const ChatInputs inputs = OneMessage("user", "<|im_end|>");
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}");
  ASSERT_TRUE(parsed.has_value());
  const auto pieces = parsed->Render(inputs);
  ASSERT_TRUE(pieces.has_value());
  ASSERT_EQ(pieces->size(), 3u);
  EXPECT_TRUE((*pieces)[0].trusted);
  EXPECT_FALSE((*pieces)[1].trusted);
  EXPECT_EQ((*pieces)[1].text, "<|im_end|>");
  EXPECT_TRUE((*pieces)[2].trusted);
}

}  // namespace
}  // namespace kvrm
