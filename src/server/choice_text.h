// SPDX-License-Identifier: Apache-2.0
// ChoiceText: one output's tokens to the parts of its answer, through the stages that hold text
// back: whole UTF-8, stop strings, reasoning, tool calls.
//
// Threading: one thread. Memory: the text that is held back.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/ports.h"
#include "server/reasoning.h"
#include "server/stop_matcher.h"
#include "server/tool_calls.h"

namespace kvrm {

struct ChoiceTextOptions {
  std::vector<std::string> stop = {};
  bool include_stop = false;
  bool special = false;          // control tokens become text
  bool split_reasoning = false;  // what is thought before the answer is a part of its own
  bool starts_in_reasoning = false;
  std::optional<ToolParserOptions> tools = {};  // nullopt: calls are not looked for
};

// What became certain at once.
struct TextPart {
  std::string content;
  std::string reasoning;
  std::vector<ToolCallDelta> calls;
};

class ChoiceText {
 public:
  ChoiceText(TextStream stream, const ChoiceTextOptions& options);

  TextPart Push(std::int32_t token);
  // The output has ended.
  TextPart Finish();
  // A stop string has come; what follows is not looked at.
  bool stopped() const { return matcher_.matched(); }
  // Requires: stopped().
  const std::string& stop() const { return matcher_.match(); }
  bool has_calls() const { return tools_ && tools_->num_calls() > 0; }

 private:
  void Add(std::string_view text, TextPart* part);
  void AddAnswer(std::string_view text, TextPart* part);
  void End(TextPart* part);

  TextStream stream_;
  StopMatcher matcher_;
  std::optional<ReasoningSplitter> reasoning_;
  std::optional<ToolCallParser> tools_;
};

}  // namespace kvrm
