// SPDX-License-Identifier: Apache-2.0
// Any bytes as text: a byte-level tokenizer gives them back, whatever its pre-tokenizer, and user
// text never becomes a control token. A SentencePiece one with all byte tokens gives them back too,
// but for the visible space.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "model/small_vocabulary.h"
#include "model/tokenizer.h"

namespace {

kvrm::Tokenizer Make(kvrm::GgufWriter writer) {
  const std::string image = writer.Build();
  const kvrm::GgufFile file = kvrm::OrThrow(kvrm::GgufFile::Parse(
      {reinterpret_cast<const std::byte*>(image.data()), image.size()}, "fuzz"));
  return kvrm::OrThrow(kvrm::Tokenizer::FromGguf(file));
}

std::vector<kvrm::Tokenizer> MakeAll() {
  std::vector<kvrm::Tokenizer> all;
  for (const char* const pre : {"gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-v3",
                                "falcon", "starcoder", "tekken", "gpt-4o", "default"}) {
    all.push_back(Make(kvrm::SmallByteLevel().Gguf(pre)));
  }
  all.push_back(Make(kvrm::SmallSentencePiece().Gguf()));
  return all;
}

// SentencePiece cannot tell a visible space in the text from one of its own.
std::string WithPlainSpaces(std::string_view text) {
  std::string plain(text);
  for (std::size_t at = plain.find(kvrm::kVisibleSpace); at != std::string::npos;
       at = plain.find(kvrm::kVisibleSpace, at)) {
    plain.replace(at, kvrm::kVisibleSpace.size(), " ");
  }
  return plain;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<kvrm::Tokenizer> all = MakeAll();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t middle = size / 2;
  for (const kvrm::Tokenizer& tokenizer : all) {
    const std::vector<std::int32_t> ids =
        tokenizer.Encode(text, {.add_special = false, .parse_special = false});
    const bool sentence_piece = tokenizer.kind() == "SPM";
    CHECK(tokenizer.Decode(ids) == (sentence_piece ? WithPlainSpaces(text) : text));
    for (const std::int32_t id : ids) {
      CHECK(!tokenizer.IsControl(id));
    }
    const kvrm::TextPiece pieces[] = {{text.substr(0, middle), true}, {text.substr(middle), false}};
    const std::vector<std::int32_t> mixed = tokenizer.EncodePieces(pieces, true);
    if (!sentence_piece) {
      const std::string with_bos =
          std::string(tokenizer.TokenName(tokenizer.bos())) + std::string(text);
      CHECK(tokenizer.Decode(mixed, true) == with_bos);
    }
  }
  return 0;
}
