// SPDX-License-Identifier: Apache-2.0
// Random templates over random messages. The first line of the input is the message's content, the
// rest is the template.
//
// Oracles: no crash and no sanitizer report; an error is one short line; output stays within its
// limit; and what the request sends is never trusted: the content is made of bytes that no template
// here may contain, and those bytes must not come out in a trusted piece.
// Not covered: equality with Jinja2 (chat_template_test.cc).
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "model/chat_template.h"

namespace {

// U+0100 to U+013F share the lead bytes 0xC4: case changes stay within Latin, which a template that
// is plain ASCII cannot spell but for escapes.
bool IsForeign(char c) {
  return (c & 0x80) != 0;
}

std::string ToForeign(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 4096)) {
    // Spaces and ASCII stay: they steer templates. Letters become letters without case.
    if (c >= 'a' && c <= 'z') {
      out += "\xE3\x81";
      out += static_cast<char>(0x81 + (c - 'a'));
    } else if (static_cast<unsigned char>(c) < 0x80) {
      out += c;
    }
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(data, data + size);
  const std::size_t newline = std::min(input.find('\n'), input.size());
  const std::string source = newline < input.size() ? input.substr(newline + 1) : "";
  const auto parsed = kvrm::ChatTemplate::Parse(source);
  const auto check_error = [](const kvrm::Error& error) {
    CHECK(error.message.find('\n') == std::string::npos);
    CHECK(error.message.size() < 300);
  };
  if (!parsed) {
    check_error(parsed.error());
    return 0;
  }
  kvrm::ChatInputs inputs;
  const std::string content = ToForeign(std::string_view(input).substr(0, newline));
  for (const char* role : {"system", "user", "assistant"}) {
    kvrm::json::object message;
    message["role"] = role;
    message["content"] = content;
    message["parts"] = kvrm::json::array{content, 1, -2.5, nullptr, true};
    inputs.messages.push_back(message);
  }
  inputs.tools = kvrm::json::array{kvrm::json::object{{content, content}, {"name", "f"}}};
  inputs.bos_token = "<s>";
  inputs.eos_token = "</s>";
  inputs.now_unix = 1'700'000'000;
  const auto pieces = parsed->Render(inputs);
  if (!pieces) {
    check_error(pieces.error());
    return 0;
  }
  // A template with foreign bytes or escapes may rightly write them itself.
  const bool plain = std::none_of(source.begin(), source.end(), IsForeign) &&
                     source.find('\\') == std::string::npos;
  std::size_t output = 0;
  bool last_trusted = false;
  for (std::size_t i = 0; i < pieces->size(); ++i) {
    const kvrm::RenderedPiece& piece = (*pieces)[i];
    CHECK(!piece.text.empty());
    CHECK(i == 0 || piece.trusted != last_trusted);
    last_trusted = piece.trusted;
    output += piece.text.size();
    if (plain && piece.trusted) {
      CHECK(std::none_of(piece.text.begin(), piece.text.end(), IsForeign));
    }
  }
  CHECK(output <= (8u << 20));
  return 0;
}
