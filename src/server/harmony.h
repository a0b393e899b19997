// SPDX-License-Identifier: Apache-2.0
// HarmonyReader: an answer in messages that name their channel, as gpt-oss writes it.
//
//   <|channel|>analysis<|message|>...<|end|>                                     what it thinks
//   <|start|>assistant<|channel|>commentary to=functions.name json<|message|>{...}<|call|>
//   <|start|>assistant<|channel|>final<|message|>...<|return|>                   content
//
//   start --mark--> header --<|message|>--> text, or call --> between --mark--> header ...
//
//   start    before the first byte that is no white space; other text than a mark: plain
//   plain    content to the end, marks and all: what a grammar has made, or a message that goes on
//   header   up to <|message|>: channel and recipient, in either order
//   text     of a message. What may be the beginning of a mark is held back
//   call     a function's arguments, from their first byte; no object: text, with its header
//   between  behind a message; other text than a mark is content
//
// Total: any text goes in. A call that is malformed or one too many, and a message to somebody
// who is no function, are content with their marks. Of messages with one destination, the later
// begins on a new line. What comes out does not depend on how the text was cut into pieces.
//
// Threading: one thread. Memory: a header, or what may be the beginning of a mark.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/call_reader.h"
#include "server/tool_call.h"

namespace kvrm {

struct HarmonyOptions {
  std::vector<std::string> names = {};  // of the tools
  std::size_t max_calls = 0;
  bool split_reasoning = true;       // else it is content, with its marks
  bool starts_in_reasoning = false;  // the prompt's end has opened it
};

class HarmonyReader {
 public:
  explicit HarmonyReader(HarmonyOptions options);

  OutputDelta Push(std::string_view text);
  // The text has ended. A header that is cut off was no text.
  OutputDelta Finish();
  std::size_t num_calls() const { return num_calls_; }

 private:
  enum class State : std::uint8_t { kStart, kPlain, kHeader, kText, kCall, kBetween };

  void Take(char c);
  void TakeOutside(char c);
  void TakeHeader(char c);
  void TakeText(char c);
  void TakeCall(char c);
  void BeginHeader(std::string_view mark);
  void BeginMessage();
  void BeginText(bool is_reasoning, bool keeps_marks);
  void Report(CallReader::Status status);
  std::optional<std::string> CalledFunction(std::string_view recipient) const;
  void Add(std::string_view text);

  const HarmonyOptions options_;
  State state_ = State::kStart;
  std::string held_;    // outside: white space and what may be a mark; in text: the latter
  std::string header_;  // kCall: and what came before the arguments
  CallReader reader_;
  std::optional<std::string> callee_;  // kCall: whose arguments have not begun
  bool is_reasoning_ = false;          // kText
  bool keeps_marks_ = false;           // kText
  bool is_new_message_ = false;        // Nothing of it has gone out.
  bool has_content_ = false;
  bool has_reasoning_ = false;
  std::size_t num_calls_ = 0;
  OutputDelta delta_;
};

}  // namespace kvrm
