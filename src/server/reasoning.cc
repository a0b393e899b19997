// SPDX-License-Identifier: Apache-2.0
#include "server/reasoning.h"

#include <algorithm>
#include <utility>

#include "server/text_marks.h"

namespace kvrm {

ReasoningSplitter::Parts ReasoningSplitter::Push(std::string_view text) {
  static constexpr std::string_view kOpen = "<think>";
  static constexpr std::string_view kClose = "</think>";
  Parts parts;
  held_ += text;
  if (state_ == State::kBefore) {
    const std::string_view begun = Trimmed(held_);
    if (begun.starts_with(kOpen)) {
      held_.erase(0, held_.find(kOpen) + kOpen.size());
      state_ = State::kInside;
    } else if (!kOpen.starts_with(begun)) {
      state_ = State::kContent;
    }
  }
  if (state_ == State::kInside) {
    const std::size_t end = held_.find(kClose);
    const std::size_t length =
        end != std::string::npos ? end : held_.size() - HeldBytes(held_, kClose);
    parts.reasoning = held_.substr(0, length);
    held_.erase(0, end != std::string::npos ? end + kClose.size() : length);
    if (end != std::string::npos) state_ = State::kBehind;
  }
  if (state_ == State::kBehind) {
    const std::size_t begin = held_.find_first_not_of(" \t\r\n");
    held_.erase(0, std::min(begin, held_.size()));
    if (!held_.empty()) state_ = State::kContent;
  }
  if (state_ == State::kContent) parts.content = std::exchange(held_, {});
  return parts;
}

ReasoningSplitter::Parts ReasoningSplitter::Finish() {
  Parts parts;
  (state_ == State::kInside ? parts.reasoning : parts.content) = std::exchange(held_, {});
  return parts;
}

bool EndsInReasoning(std::string_view prompt) {
  prompt = Trimmed(prompt);
  return prompt.ends_with("<think>") || prompt.ends_with("<|channel|>analysis<|message|>");
}

}  // namespace kvrm
