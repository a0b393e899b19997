// SPDX-License-Identifier: Apache-2.0
#include "server/harmony.h"

#include <algorithm>
#include <array>
#include <utility>

#include "server/text_marks.h"

namespace kvrm {
namespace {

// A header that is longer is none.
constexpr std::size_t kMaxHeaderBytes = 512;
constexpr std::string_view kChannel = "<|channel|>";
constexpr std::string_view kMessage = "<|message|>";
constexpr std::string_view kFunctions = "functions.";
// The first begin a header, the others end a message.
constexpr std::size_t kNumBeginMarks = 2;
constexpr std::array<std::string_view, 5> kMarks = {"<|start|>", kChannel, "<|end|>", "<|call|>",
                                                    "<|return|>"};
// Also at the very beginning: the prompt ends behind the role, and a recipient may come next.
constexpr std::string_view kFirstRecipient = "to=functions.";

// Up to white space or a mark.
std::string_view WordBehind(std::string_view text, std::string_view mark) {
  const std::size_t at = text.rfind(mark);
  if (at == std::string_view::npos) return {};
  text.remove_prefix(at + mark.size());
  return text.substr(0, std::min(text.find_first_of("< \t\r\n"), text.size()));
}

}  // namespace

HarmonyReader::HarmonyReader(HarmonyOptions options) : options_(std::move(options)) {
  if (options_.starts_in_reasoning) BeginText(options_.split_reasoning, !options_.split_reasoning);
}

OutputDelta HarmonyReader::Push(std::string_view text) {
  for (const char c : text)
    Take(c);
  return std::exchange(delta_, {});
}

void HarmonyReader::Take(char c) {
  switch (state_) {
    case State::kStart:
    case State::kBetween:
      return TakeOutside(c);
    case State::kPlain:
      return Add({&c, 1});
    case State::kHeader:
      return TakeHeader(c);
    case State::kText:
      return TakeText(c);
    case State::kCall:
      return TakeCall(c);
  }
}

void HarmonyReader::TakeOutside(char c) {
  held_ += c;
  const std::string_view begun =
      std::string_view(held_).substr(std::min(held_.find_first_not_of(" \t\r\n"), held_.size()));
  const bool is_first = state_ == State::kStart;
  if (is_first && begun == kFirstRecipient) return BeginHeader(kFirstRecipient);
  for (std::size_t i = 0; i < kMarks.size(); ++i) {
    if (begun != kMarks[i] || (is_first && i >= kNumBeginMarks)) continue;
    if (i < kNumBeginMarks) return BeginHeader(kMarks[i]);
    held_.clear();
    state_ = State::kBetween;
    return;
  }
  const bool may_be_mark =
      (is_first && kFirstRecipient.starts_with(begun)) ||
      std::any_of(kMarks.begin(), kMarks.begin() + (is_first ? kNumBeginMarks : kMarks.size()),
                  [&](std::string_view mark) { return mark.starts_with(begun); });
  if (may_be_mark) return;
  const std::string text = std::exchange(held_, {});
  if (is_first) {
    state_ = State::kPlain;
    return Add(text);
  }
  // It ends where a message would.
  BeginText(false, false);
  is_new_message_ = false;
  for (const char held : text)
    TakeText(held);
}

void HarmonyReader::BeginHeader(std::string_view mark) {
  held_.clear();
  header_ = mark;
  state_ = State::kHeader;
}

void HarmonyReader::TakeHeader(char c) {
  header_ += c;
  if (header_.ends_with(kMessage)) return BeginMessage();
  if (header_.size() < kMaxHeaderBytes) return;
  BeginText(false, true);
  Add(std::exchange(header_, {}));
}

std::optional<std::string> HarmonyReader::CalledFunction(std::string_view recipient) const {
  const bool is_known =
      std::find(options_.names.begin(), options_.names.end(), recipient) != options_.names.end();
  if (is_known) return std::string(recipient);
  if (!recipient.starts_with(kFunctions)) return std::nullopt;
  recipient.remove_prefix(kFunctions.size());
  const bool is_name = !recipient.empty() && recipient.size() <= CallReader::kMaxNameBytes &&
                       std::all_of(recipient.begin(), recipient.end(), IsToolNameChar);
  return is_name ? std::optional(std::string(recipient)) : std::nullopt;
}

// Behind the header.
void HarmonyReader::BeginMessage() {
  const std::string_view recipient = WordBehind(header_, "to=");
  callee_ = num_calls_ < options_.max_calls ? CalledFunction(recipient) : std::nullopt;
  if (callee_) {
    state_ = State::kCall;
    return;
  }
  const bool is_analysis = WordBehind(header_, kChannel) == "analysis";
  const bool is_reasoning = is_analysis && options_.split_reasoning;
  const bool keeps_marks = !is_reasoning && (is_analysis || !recipient.empty());
  BeginText(is_reasoning, keeps_marks);
  if (keeps_marks) Add(header_);
  header_.clear();
}

void HarmonyReader::BeginText(bool is_reasoning, bool keeps_marks) {
  is_reasoning_ = is_reasoning;
  keeps_marks_ = keeps_marks;
  is_new_message_ = !keeps_marks;
  state_ = State::kText;
}

void HarmonyReader::TakeText(char c) {
  held_ += c;
  std::size_t num_held = 0;
  for (std::size_t i = 0; i < kMarks.size(); ++i) {
    const std::string_view mark = kMarks[i];
    num_held = std::max(num_held, HeldBytes(held_, mark));
    if (!held_.ends_with(mark)) continue;
    const bool begins = i < kNumBeginMarks;
    held_.resize(held_.size() - (keeps_marks_ && !begins ? 0 : mark.size()));
    Add(std::exchange(held_, {}));
    if (begins) return BeginHeader(mark);
    state_ = State::kBetween;
    return;
  }
  Add(std::string_view(held_).substr(0, held_.size() - num_held));
  held_.erase(0, held_.size() - num_held);
}

void HarmonyReader::TakeCall(char c) {
  if (!callee_) return Report(reader_.Push(c));
  if (IsSpace(c)) {
    header_ += c;
  } else if (c == '{') {
    delta_.calls.push_back({.call_idx = num_calls_++, .begins = true, .name = *callee_});
    reader_.Start(std::exchange(callee_, std::nullopt));
    header_.clear();
    Report(reader_.Push(c));
  } else {
    BeginText(false, true);
    Add(std::exchange(header_, {}));
    TakeText(c);
  }
}

void HarmonyReader::Report(CallReader::Status status) {
  const std::size_t call_idx = num_calls_ - 1;
  if (delta_.calls.empty() || delta_.calls.back().call_idx != call_idx)
    delta_.calls.push_back({.call_idx = call_idx});
  delta_.calls.back().arguments += reader_.TakeArguments();
  // What is no JSON ends the call where it stands.
  if (status == CallReader::Status::kDone) state_ = State::kBetween;
  if (status == CallReader::Status::kBad) BeginText(false, false);
}

OutputDelta HarmonyReader::Finish() {
  const bool is_outside = state_ == State::kBetween && Trimmed(held_).empty();
  if (!is_outside) Add(std::exchange(held_, {}));
  return std::exchange(delta_, {});
}

void HarmonyReader::Add(std::string_view text) {
  if (text.empty()) return;
  std::string& part = is_reasoning_ ? delta_.reasoning : delta_.content;
  bool& has_part = is_reasoning_ ? has_reasoning_ : has_content_;
  if (std::exchange(is_new_message_, false) && has_part) part += '\n';
  part += text;
  has_part = true;
}

}  // namespace kvrm
