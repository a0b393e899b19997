// SPDX-License-Identifier: Apache-2.0
// Any text in any tool format, in two ways of cutting it: the same content and the same calls, and
// without a call the text itself.
//
// The first byte picks the format, the second the length of pieces; the rest is the text.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "server/reasoning.h"
#include "server/tool_calls.h"

namespace kvrm {
namespace {

struct Parsed {
  std::string content;
  std::string reasoning;
  std::string calls;  // name, arguments, ...
};

void Add(const OutputDelta& delta, Parsed& parsed) {
  parsed.content += delta.content;
  parsed.reasoning += delta.reasoning;
  for (const ToolCallDelta& call : delta.calls) {
    if (call.begins) parsed.calls += "\n" + call.name + "\n";
    parsed.calls += call.arguments;
  }
}

Parsed Parse(ToolFormat format, std::string_view text, std::size_t step) {
  ReasoningSplitter splitter(false);
  ToolCallParser parser({.format = format, .names = {"add", "f"}});
  Parsed parsed;
  for (std::size_t at = 0; at < text.size(); at += step) {
    const ReasoningSplitter::Parts parts = splitter.Push(text.substr(at, step));
    Add(parser.Push(parts.content), parsed);
  }
  Add(parser.Push(splitter.Finish().content), parsed);
  Add(parser.Finish(), parsed);
  CHECK(parser.num_calls() <= kMaxToolCalls);
  CHECK(parsed.content.size() <= text.size());
  const bool drops_marks = format == ToolFormat::kFunctionary32 || format == ToolFormat::kHarmony ||
                           text.find("<think>") != std::string_view::npos;
  CHECK(drops_marks || parser.num_calls() > 0 || parsed.content == text);
  return parsed;
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto format = static_cast<kvrm::ToolFormat>(data[0] % kvrm::kNumToolFormats);
  const std::string_view text(reinterpret_cast<const char*>(data + 2), size - 2);
  const kvrm::Parsed whole = kvrm::Parse(format, text, text.size() + 1);
  const kvrm::Parsed cut = kvrm::Parse(format, text, 1 + data[1] % 16);
  CHECK(whole.content == cut.content && whole.reasoning == cut.reasoning &&
        whole.calls == cut.calls);
  return 0;
}
