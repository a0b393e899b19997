// SPDX-License-Identifier: Apache-2.0
#include "server/call_reader.h"

#include <utility>

#include "base/json.h"
#include "server/text_marks.h"

namespace kvrm {
namespace {

// Of a JSON string with its quotes.
std::optional<std::string> Decoded(std::string_view quoted) {
  const Result<json::value> parsed = ParseJson(quoted);
  if (!parsed || !parsed->is_string()) return std::nullopt;
  return std::string(parsed->get_string());
}

}  // namespace

void CallReader::Start(std::optional<std::string> name) {
  *this = CallReader();
  whole_is_arguments_ = name.has_value();
  name_ = std::move(name);
}

std::string CallReader::TakeArguments() {
  return std::exchange(arguments_, {});
}

CallReader::Status CallReader::Push(char c) {
  if (whole_is_arguments_) arguments_ += c;
  if (in_string_) return PushInString(c);
  return PushStructure(c);
}

CallReader::Status CallReader::PushInString(char c) {
  if (!whole_is_arguments_) Capture(c);
  if (target_ == Target::kKey || target_ == Target::kName) {
    if (captured_.size() > kMaxNameBytes) return Status::kBad;
  }
  if (escaped_) {
    escaped_ = false;
  } else if (c == '\\') {
    escaped_ = true;
  } else if (c == '"') {
    in_string_ = false;
    return EndString();
  }
  return Status::kMore;
}

// A string that has just been closed.
CallReader::Status CallReader::EndString() {
  if (whole_is_arguments_ || open_.size() != base_) return Status::kMore;
  if (target_ == Target::kKey || target_ == Target::kName) {
    std::optional<std::string> text = Decoded(std::exchange(captured_, {}));
    if (!text) return Status::kBad;
    if (target_ == Target::kKey) {
      key_ = *std::move(text);
      target_ = Target::kNone;
      expect_ = Expect::kColon;
      return Status::kMore;
    }
    name_ = std::move(text);
  } else if (target_ == Target::kArgumentsString) {
    std::optional<std::string> text = Decoded(std::exchange(captured_, {}));
    if (!text) return Status::kBad;
    arguments_ += *text;
  }
  EndValue();
  return Status::kMore;
}

void CallReader::EndValue() {
  target_ = Target::kNone;
  in_scalar_ = false;
  expect_ = Expect::kComma;
}

void CallReader::Capture(char c) {
  if (target_ == Target::kArguments)
    arguments_ += c;
  else if (target_ != Target::kNone)
    captured_ += c;
}

CallReader::Status CallReader::PushStructure(char c) {
  if (!whole_is_arguments_ && !open_.empty() && open_.size() == base_) return PushAtBase(c);
  if (!whole_is_arguments_ && !open_.empty()) Capture(c);
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') return Open(c);
  if (c == '}' || c == ']') return Close(c);
  return open_.empty() ? Status::kBad : Status::kMore;
}

CallReader::Status CallReader::Open(char c) {
  if (open_.size() == kMaxDepth) return Status::kBad;
  open_ += c;
  return Status::kMore;
}

CallReader::Status CallReader::Close(char c) {
  if (open_.empty() || open_.back() != (c == '}' ? '{' : '[')) return Status::kBad;
  open_.pop_back();
  if (open_.empty()) return Status::kDone;
  if (open_.size() + 1 == base_) --base_;  // The "function" has ended.
  if (open_.size() == base_ && !whole_is_arguments_) EndValue();
  return Status::kMore;
}

// Between the members of the object that counts.
CallReader::Status CallReader::PushAtBase(char c) {
  if (in_scalar_ && c != ',' && c != '}' && !IsSpace(c)) {
    Capture(c);
    return Status::kMore;
  }
  if (in_scalar_) EndValue();
  if (IsSpace(c)) return Status::kMore;
  if (c == '}') return Close(c);
  switch (expect_) {
    case Expect::kKey:
      if (c != '"') return Status::kBad;
      in_string_ = true;
      target_ = Target::kKey;
      captured_ = c;
      return Status::kMore;
    case Expect::kColon:
      expect_ = Expect::kValue;
      return c == ':' ? Status::kMore : Status::kBad;
    case Expect::kValue:
      return BeginValue(c);
    case Expect::kComma:
      expect_ = Expect::kKey;
      return c == ',' ? Status::kMore : Status::kBad;
  }
  return Status::kBad;
}

CallReader::Status CallReader::BeginValue(char c) {
  const bool is_name = key_ == "name" || key_ == "tool_name";
  const bool is_arguments = !has_arguments_ && (key_ == "arguments" || key_ == "parameters");
  if (key_ == "function" && c == '{' && base_ == 1) {
    base_ = 2;
    expect_ = Expect::kKey;
    return Open(c);
  }
  if (is_name && !name_ && c == '"') target_ = Target::kName;
  if (is_arguments && c == '"') target_ = Target::kArgumentsString;
  if (is_arguments && (c == '{' || c == '[')) target_ = Target::kArguments;
  has_arguments_ |= is_arguments;
  captured_.clear();
  Capture(c);
  if (c == '"') {
    in_string_ = true;
  } else if (c == '{' || c == '[') {
    return Open(c);
  } else {
    in_scalar_ = true;
  }
  return Status::kMore;
}

}  // namespace kvrm
