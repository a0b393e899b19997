// SPDX-License-Identifier: Apache-2.0
// Published vocabularies against the ids their own tokenizers give. The vocabularies are not part
// of the project: the tests skip where the folder is absent.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/file.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "model/tokenizer.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;

std::string SharedPath(const std::string& below) {
  const char* given = std::getenv("KVRM_SHARED");
  const std::string root = given != nullptr ? given : KVRM_SOURCE_DIR "/../shared";
  return root + "/data/" + below;
}

std::string Slurp(const std::string& path) {
  Result<std::string> text = ReadFile(path, kMaxTokenizerJsonBytes);
  return text ? *std::move(text) : "";
}

Result<Tokenizer> LoadGguf(const std::string& path) {
  const Result<GgufFile> file = GgufFile::Open(path);
  if (!file) return file.error();
  return Tokenizer::FromGguf(*file);
}

Result<Tokenizer> LoadFolder(const std::string& folder) {
  return Tokenizer::FromHuggingFace(Slurp(folder + "/tokenizer.json"),
                                    Slurp(folder + "/tokenizer_config.json"));
}

struct Case {
  std::string text;
  Ids ids;
};

// The texts of NAME.gguf.inp with the ids of NAME.gguf.out.
std::vector<Case> ReadCases(const std::string& vocab) {
  const std::string texts = Slurp(vocab + ".inp");
  std::istringstream lines(Slurp(vocab + ".out"));
  constexpr std::string_view kBetween = "\n__ggml_vocab_test__\n";
  std::vector<Case> cases;
  for (std::size_t begin = 0; begin <= texts.size();) {
    const std::size_t end = std::min(texts.find(kBetween, begin), texts.size());
    Case c;
    c.text = texts.substr(begin, end - begin);
    std::string line;
    if (!std::getline(lines, line)) break;
    std::istringstream numbers(line);
    for (std::int32_t id = 0; numbers >> id;) {
      c.ids.push_back(id);
    }
    cases.push_back(std::move(c));
    begin = end + kBetween.size();
  }
  return cases;
}

constexpr EncodeOptions kPlain = {.add_special = false, .parse_special = false};

std::size_t CountFailures(const Tokenizer& tokenizer, const std::vector<Case>& cases) {
  std::size_t num_failed = 0;
  for (const Case& c : cases) {
    const Ids ids = tokenizer.Encode(c.text, kPlain);
    EXPECT_EQ(ids, c.ids) << tokenizer.kind() << ": '" << c.text << "'";
    num_failed += ids != c.ids;
  }
  return num_failed;
}

const char* const kVocabs[] = {"deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm",
                               "mpt",          "phi-3",  "qwen2", "starcoder"};

TEST(PublishedVocabs, GiveTheirOwnIds) {
  if (!std::filesystem::exists(SharedPath("vocabs"))) GTEST_SKIP() << "no shared vocabularies";
  std::printf("%-14s %-18s %8s %6s %6s\n", "vocabulary", "kind", "tokens", "cases", "pass");
  for (const std::string name : kVocabs) {
    const std::string path = SharedPath("vocabs/ggml-vocab-" + name + ".gguf");
    const Result<Tokenizer> tokenizer = LoadGguf(path);
    ASSERT_TRUE(tokenizer) << name << ": " << tokenizer.error().message;
    const std::vector<Case> cases = ReadCases(path);
    EXPECT_EQ(cases.size(), 46u) << name;
    const std::size_t num_failed = CountFailures(*tokenizer, cases);
    std::printf("%-14s %-18s %8u %6zu %6zu\n", name.c_str(), std::string(tokenizer->kind()).c_str(),
                tokenizer->num_tokens(), cases.size(), cases.size() - num_failed);
  }
}

TEST(PublishedVocabs, TokenizerJsonGivesTheSameIds) {
  if (!std::filesystem::exists(SharedPath("vocabs"))) GTEST_SKIP() << "no shared vocabularies";
  const std::pair<std::string, std::string> roads[] = {{"hf-llama3", "llama-bpe"},
                                                       {"hf-qwen2.5", "qwen2"}};
  const std::string prose = Slurp(SharedPath("text/wiki.test.raw")).substr(0, 200'000);
  for (const auto& [folder, vocab] : roads) {
    const Result<Tokenizer> tokenizer = LoadFolder(SharedPath("vocabs/" + folder));
    ASSERT_TRUE(tokenizer) << folder << ": " << tokenizer.error().message;
    const std::string gguf = SharedPath("vocabs/ggml-vocab-" + vocab + ".gguf");
    const std::vector<Case> cases = ReadCases(gguf);
    const std::size_t num_failed = CountFailures(*tokenizer, cases);
    std::printf("%-14s %-28s %8u %6zu %6zu\n", folder.c_str(),
                std::string(tokenizer->kind()).c_str(), tokenizer->num_tokens(), cases.size(),
                cases.size() - num_failed);
    const Result<Tokenizer> other = LoadGguf(gguf);
    ASSERT_TRUE(other) << other.error().message;
    EXPECT_EQ(tokenizer->Encode(prose, kPlain), other->Encode(prose, kPlain)) << folder;
    EXPECT_EQ(tokenizer->adds_bos(), other->adds_bos()) << folder;
    EXPECT_EQ(tokenizer->bos(), other->bos()) << folder;
    EXPECT_FALSE(tokenizer->chat_template().empty()) << folder;
  }
}

TEST(PublishedVocabs, TinyStoriesAgreeOnBothRoads) {
  const std::string folder = SharedPath("models/tinystories-656k");
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no shared models";
  const Result<Tokenizer> json = LoadFolder(folder);
  ASSERT_TRUE(json) << json.error().message;
  const Result<Tokenizer> gguf = LoadGguf(folder + "/tinystories-656k-f32.gguf");
  ASSERT_TRUE(gguf) << gguf.error().message;
  EXPECT_EQ(json->bos(), 1);
  EXPECT_EQ(json->eos(), 2);
  EXPECT_EQ(json->stop_ids(), gguf->stop_ids());
  std::istringstream stories(Slurp(SharedPath("text/tinyshakespeare.txt")).substr(0, 300'000));
  std::size_t num_lines = 0;
  for (std::string line; std::getline(stories, line) && num_lines < 5000; ++num_lines) {
    const EncodeOptions options = {.add_special = true, .parse_special = num_lines % 2 == 0};
    EXPECT_EQ(json->Encode(line, options), gguf->Encode(line, options)) << line;
  }
}

// Texts of every kind: random bytes, random code points, words and runs.
std::string RandomText(Rng& rng) {
  std::string text;
  const std::uint64_t num_parts = rng.Below(12);
  for (std::uint64_t i = 0; i < num_parts; ++i) {
    switch (rng.Below(6)) {
      case 0:
        text += static_cast<char>(rng.Below(256));
        break;
      case 1:
        AppendUtf8(text, static_cast<char32_t>(0x20 + rng.Below(0xD000)));
        break;
      case 2:
        AppendUtf8(text, static_cast<char32_t>(0x10000 + rng.Below(0x10000)));
        break;
      case 3:
        text.append(rng.Below(9), " \n\t\r0a"[rng.Below(6)]);
        break;
      case 4:
        text += "Hello, world's 12345";
        break;
      default:
        text += static_cast<char>(0x20 + rng.Below(0x5F));
        break;
    }
  }
  return text;
}

std::string Valid(std::string_view text) {
  std::string valid;
  AppendValidUtf8(valid, text);
  return valid;
}

TEST(PublishedVocabs, RoundTripAndStream) {
  if (!std::filesystem::exists(SharedPath("vocabs"))) GTEST_SKIP() << "no shared vocabularies";
  for (const std::string name : kVocabs) {
    SCOPED_TRACE(name);
    const Result<Tokenizer> tokenizer = LoadGguf(SharedPath("vocabs/ggml-vocab-" + name + ".gguf"));
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    const bool spm = tokenizer->kind() == "SPM";
    std::string missing;
    for (int byte = 0; byte < 256; ++byte) {
      const std::string text(1, static_cast<char>(byte));
      if (tokenizer->Encode(text, kPlain).empty()) missing += text;
    }
    Rng rng(7);
    for (int round = 0; round < 300; ++round) {
      const std::string text = RandomText(rng);
      // Some vocabularies lack bytes that UTF-8 never uses or text seldom; they are left out.
      std::string expected = text;
      std::erase_if(expected, [&](char c) { return missing.find(c) != std::string::npos; });
      ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text, kPlain)), expected);

      Ids ids(rng.Below(40));
      for (std::int32_t& id : ids) {
        id = static_cast<std::int32_t>(rng.Below(tokenizer->num_tokens() + 2)) - 1;
      }
      std::string streamed;
      StreamDecoder decoder(*tokenizer);
      for (const std::int32_t id : ids) {
        const std::string text_of_id = decoder.Push(id);
        ASSERT_TRUE(IsValidUtf8(text_of_id));
        streamed += text_of_id;
      }
      streamed += decoder.Finish();
      const std::string whole = Valid(tokenizer->Decode(ids));
      if (spm && streamed.size() == whole.size() + 1) streamed.erase(0, 1);
      ASSERT_EQ(streamed, whole);
    }
  }
}

TEST(PublishedVocabs, LongRunsAreNotQuadratic) {
  if (!std::filesystem::exists(SharedPath("vocabs"))) GTEST_SKIP() << "no shared vocabularies";
    // A quadratic step anywhere makes these take minutes; the test's time limit is the assertion.
#ifdef KVRM_DEBUG_CHECKS
  const std::size_t length = std::size_t{1} << 16;  // Sanitisers cost tenfold.
#else
  const std::size_t length = std::size_t{1} << 18;
#endif
  const std::string units[] = {"a", " ", "=", "\xE4\xB8\xAD", "\xFF", " \n"};
  for (const std::string name : {"deepseek-llm", "falcon", "llama-bpe", "llama-spm"}) {
    const Result<Tokenizer> tokenizer = LoadGguf(SharedPath("vocabs/ggml-vocab-" + name + ".gguf"));
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    const bool has_all_bytes = !tokenizer->Encode("\xFF", kPlain).empty();
    for (const std::string& unit : units) {
      if (unit == "\xFF" && !has_all_bytes) continue;
      std::string text;
      while (text.size() < length) {
        text += unit;
      }
      text += '+';
      EXPECT_TRUE(tokenizer->Decode(tokenizer->Encode(text, kPlain)) == text) << name << unit;
    }
  }
}

}  // namespace
}  // namespace kvrm
