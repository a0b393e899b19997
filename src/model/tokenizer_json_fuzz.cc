// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json: refused, or a tokenizer whose ids are in range and whose streamed
// text is the decoded one.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/utf8.h"
#include "model/tokenizer.h"

namespace {

void EncodeAndDecode(const kvrm::Tokenizer& tokenizer, std::string_view text) {
  const kvrm::EncodeOptions options = {.add_special = true, .parse_special = true};
  const std::vector<std::int32_t> ids = tokenizer.Encode(text, options);
  kvrm::StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const std::int32_t id : ids) {
    CHECK(id >= 0 && static_cast<std::uint32_t>(id) < tokenizer.num_tokens());
    streamed += decoder.Push(id);
    CHECK(kvrm::IsValidUtf8(streamed));
  }
  streamed += decoder.Finish();
  std::string whole;
  kvrm::AppendValidUtf8(whole, tokenizer.Decode(ids));
  // Decode takes the space off the start that encoding put there.
  CHECK(streamed == whole || streamed == " " + whole);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const kvrm::Result<kvrm::Tokenizer> tokenizer = kvrm::Tokenizer::FromHuggingFace(
      input, R"({"chat_template":[{"name":"default","template":"x"}]})");
  if (!tokenizer) {
    CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  EncodeAndDecode(*tokenizer, "Hello, world's  12345\n\n<s></s>");
  EncodeAndDecode(*tokenizer, "\xC3\xA9\xE2\x96\x81 \xFF\xE4\xB8\xAD e\xCC\x81");
  EncodeAndDecode(*tokenizer, input.substr(0, 64));
  return 0;
}
