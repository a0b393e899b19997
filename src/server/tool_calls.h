// SPDX-License-Identifier: Apache-2.0
// ToolCallParser: from a model's text to content and tool calls, as it comes.
//
// Families of models write calls in their own ways; the text of the chat template says which
// (DetectToolFormat). Total: any text goes in, and whatever is not a call of the format comes out
// as content. Content and calls do not depend on how the text was cut into pieces.
//
//   text  --opener-->  header  --{-->  call  --balanced-->  header  --closer or other text-->  text
//
//   text    content; what may be the beginning of an opener is held back
//   header  between an opener, or a call, and the next object: separators, or a name
//   block   instead of a call, a function in another notation: it goes out when it is whole
//   call    one JSON object: the call with its name, or after a name the arguments alone. The
//           arguments go out as they come once the name is known; until then the text may still
//           turn out to be content
//
// One format, harmony, is another machine's (server/harmony.h).
//
// Given whole UTF-8 per push, whole UTF-8 comes out. A push costs time in proportion to its length.
//
// Threading: one thread. Memory: the text of an unfinished call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/call_reader.h"
#include "server/harmony.h"
#include "server/python_call.h"
#include "server/tool_call.h"

namespace kvrm {

enum class ToolFormat : std::uint8_t {
  kJson,           // {"name", "arguments"} as the whole answer: where the template names no format
  kNamed,          // the whole answer is the arguments of one function that was asked for
  kHermes,         // <tool_call>{"name", "arguments"}</tool_call>: Hermes, Qwen, Granite 4; or
                   // with parameters in XML (server/xml_call.h): Qwen3-Coder, Nemotron 3
  kLlama,          // {"name", "parameters"} as the whole answer, or after <|python_tag|>; ; between
  kMistral,        // [TOOL_CALLS][{"name", "arguments"}], or [TOOL_CALLS]name[ARGS]{...}
  kDeepSeek,       // its own control tokens around name and ```json arguments
  kFunctionary,    // <function=name>{...}</function>
  kFunctionary32,  // >>>name\n{...}; the text after >>>all\n is content
  kFirefunction,   // functools[{"name", "arguments"}]
  kGranite,        // <|tool_call|>[{"name", "arguments"}]
  kCommandR,       // Action: ```json [{"tool_name", "parameters"}]```, or <|START_ACTION|>[...]
  kNemotron,       // <TOOLCALL>[{"name", "arguments"}]</TOOLCALL>
  kMiniMax,        // <tool_calls> {"name", "arguments"} ... </tool_calls>
  kKimi,           // <|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}
  kGlm,      // <tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>: also Laguna
  kLfm,      // <|tool_call_start|>[name(k="v")]<|tool_call_end|>
  kHarmony,  // messages in channels: gpt-oss
};

inline constexpr int kNumToolFormats = 17;

const char* ToolFormatName(ToolFormat format);
ToolFormat DetectToolFormat(std::string_view chat_template);

inline constexpr std::size_t kMaxToolCalls = 128;

struct ToolParserOptions {
  ToolFormat format = ToolFormat::kJson;
  std::vector<std::string> names;  // of the tools; kNamed: the one
  json::array tools = {};          // their schemas, which say what parameters in XML are
  // What would be one more is content. At most kMaxToolCalls.
  std::size_t max_calls = kMaxToolCalls;
  // kHarmony alone: as in HarmonyOptions.
  bool split_reasoning = true;
  bool starts_in_reasoning = false;
};

class ToolCallParser {
 public:
  explicit ToolCallParser(ToolParserOptions options);

  OutputDelta Push(std::string_view text);
  // The text has ended. A call that is cut off stays as far as it has come.
  OutputDelta Finish();
  std::size_t num_calls() const { return harmony_ ? harmony_->num_calls() : num_calls_; }

 private:
  enum class State : std::uint8_t { kStart, kText, kHeader, kCall, kBlock };

  void Take(char c);
  void TakeStart(char c);
  void TakeText(char c);
  void TakeHeader(char c);
  void TakeCall(char c);
  void TakeBlock(char c);
  bool MayBeginBlock(char c) const;
  void BeginBlock(std::size_t num_bytes);
  PythonCallScanner::Status BlockStatus(char c);
  std::optional<ToolCall> ReadBlock() const;
  void BeginCall(std::optional<std::string> name);
  void Report(CallReader::Status status);
  bool MayBegin(const std::string& name) const;
  void EndRegion();
  void GiveUp();
  void AddContent(std::string_view text);
  std::string_view HeaderTail() const;
  std::optional<std::string> NameInHeader() const;
  bool HeaderIsHopeless() const;

  const ToolParserOptions options_;
  State state_ = State::kStart;
  std::string held_;      // kText: what may begin an opener
  std::string fallback_;  // kStart, kHeader, kCall, kBlock: what is content if this is no call
  std::string header_;
  CallReader reader_;
  PythonCallScanner scanner_;    // kBlock of kLfm
  std::size_t block_begin_ = 0;  // kBlock: in fallback_
  bool in_value_ = false;        // kBlock of kGlm
  bool after_call_ = false;      // kHeader: behind a call, not behind an opener
  bool started_ = false;         // kCall: the call has gone out
  std::string space_;            // white space that is content only if more content follows
  std::size_t num_calls_ = 0;
  OutputDelta delta_;
  std::optional<HarmonyReader> harmony_;  // in place of all the above
};

}  // namespace kvrm
