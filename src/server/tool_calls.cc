// SPDX-License-Identifier: Apache-2.0
#include "server/tool_calls.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "server/xml_call.h"

namespace kvrm {
namespace {

// A header that is longer holds no name.
constexpr std::size_t kMaxHeaderBytes = 512;
constexpr std::string_view kXmlBegin = "<function=";
constexpr std::string_view kXmlEnd = "</function>";

// How a format is written. `name_first`: the name stands in the header, between `name_begin` (or
// the header's beginning) and `name_end`.
struct Syntax {
  ToolFormat format;
  const char* name;
  std::array<std::string_view, 2> openers;
  std::string_view closer;
  bool at_start = false;  // The answer may begin with a call, without an opener.
  bool name_first = false;
  std::string_view name_begin = {};
  std::string_view name_end = {};
};

constexpr std::array kSyntaxes = {
    Syntax{ToolFormat::kJson, "json", {}, "", true},
    Syntax{ToolFormat::kNamed, "named", {}, "", true},
    Syntax{ToolFormat::kHermes, "hermes", {"<tool_call>"}, "</tool_call>"},
    Syntax{ToolFormat::kLlama, "llama", {"<|python_tag|>"}, "<|eom_id|>", true},
    Syntax{ToolFormat::kMistral, "mistral", {"[TOOL_CALLS]"}, ""},
    Syntax{ToolFormat::kDeepSeek,
           "deepseek",
           {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"},
           "<｜tool▁calls▁end｜>",
           false,
           true,
           "<｜tool▁call▁begin｜>",
           "<｜tool▁sep｜>"},
    Syntax{ToolFormat::kFunctionary,
           "functionary",
           {"<function="},
           "</function>",
           false,
           true,
           "",
           ">"},
    Syntax{ToolFormat::kFunctionary32, "functionary-3.2", {">>>"}, "", true, true, ">>>", "\n"},
    Syntax{ToolFormat::kFirefunction, "firefunction", {"functools"}, ""},
    Syntax{ToolFormat::kGranite, "granite", {"<|tool_call|>", "<tool_call>"}, "</tool_call>"},
    Syntax{ToolFormat::kCommandR, "command-r", {"<|START_ACTION|>", "Action:"}, "<|END_ACTION|>"},
    Syntax{ToolFormat::kNemotron, "nemotron", {"<TOOLCALL>"}, "</TOOLCALL>"},
    Syntax{ToolFormat::kMiniMax, "minimax", {"<tool_calls>"}, "</tool_calls>"},
    Syntax{ToolFormat::kKimi,
           "kimi",
           {"<|tool_calls_section_begin|>", "<|tool_call_begin|>"},
           "<|tool_calls_section_end|>",
           false,
           true,
           "<|tool_call_begin|>",
           "<|tool_call_argument_begin|>"},
};

const Syntax& SyntaxOf(ToolFormat format) {
  return *std::find_if(kSyntaxes.begin(), kSyntaxes.end(),
                       [&](const Syntax& syntax) { return syntax.format == format; });
}

bool IsSpace(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && IsSpace(text.front()))
    text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back()))
    text.remove_suffix(1);
  return text;
}

// Without what stands between calls: white space, brackets and commas, a fence, an end.
std::string_view WithoutSeparators(std::string_view text) {
  static constexpr std::array<std::string_view, 4> kMarks = {
      "```json", "```", "<｜tool▁call▁end｜>", "<|tool_call_end|>"};
  for (;;) {
    const auto mark = std::find_if(kMarks.begin(), kMarks.end(),
                                   [&](std::string_view m) { return text.starts_with(m); });
    if (!text.empty() && (IsSpace(text.front()) || text.front() == '[' || text.front() == ']' ||
                          text.front() == ',' || text.front() == ';')) {
      text.remove_prefix(1);
    } else if (mark != kMarks.end()) {
      text.remove_prefix(mark->size());
    } else {
      return text;
    }
  }
}

// The longest end of `text` that is a beginning of `mark`, the whole left out.
std::size_t HeldBytes(std::string_view text, std::string_view mark) {
  if (mark.empty()) return 0;
  for (std::size_t length = std::min(mark.size() - 1, text.size()); length > 0; --length) {
    if (text.ends_with(mark.substr(0, length))) return length;
  }
  return 0;
}

// Whether `text` can become a name and `end`, and nothing but white space behind it.
bool MayBeName(std::string_view text, std::string_view end) {
  const std::size_t at = text.find(end);
  const std::string_view name = text.substr(0, at);
  const bool is_plain = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
  return is_plain &&
         (at == std::string_view::npos || Trimmed(text.substr(at + end.size())).empty());
}

bool IsSeparatorMark(char c) {
  return c == ']' || c == ',' || c == ';' || IsSpace(c);
}

}  // namespace

const char* ToolFormatName(ToolFormat format) {
  return SyntaxOf(format).name;
}

ToolFormat DetectToolFormat(std::string_view chat_template) {
  const auto has = [&](std::string_view text) {
    return chat_template.find(text) != std::string_view::npos;
  };
  if (has("[TOOL_CALLS]")) return ToolFormat::kMistral;
  if (has("tool▁call▁begin")) return ToolFormat::kDeepSeek;
  if (has("<|tool_call_begin|>")) return ToolFormat::kKimi;
  if (has(">>>all")) return ToolFormat::kFunctionary32;
  if (has("functools[")) return ToolFormat::kFirefunction;
  if (has("<|START_ACTION|>") || has("Action:")) return ToolFormat::kCommandR;
  if (has("<|tool_call|>")) return ToolFormat::kGranite;
  if (has("<TOOLCALL>")) return ToolFormat::kNemotron;
  if (has("<tool_calls>")) return ToolFormat::kMiniMax;
  // Others write XML parameters into a function inside a <tool_call>.
  if (has("<function=") && !has("<parameter=")) return ToolFormat::kFunctionary;
  if (has("<tool_call>")) return ToolFormat::kHermes;
  if (has("\"parameters\"") && (has("<|python_tag|>") || has("<|start_header_id|>")))
    return ToolFormat::kLlama;
  return ToolFormat::kJson;
}

ToolCallParser::ToolCallParser(ToolParserOptions options) : options_(std::move(options)) {
  if (SyntaxOf(options_.format).at_start) return;
  state_ = State::kText;
}

OutputDelta ToolCallParser::Push(std::string_view text) {
  for (const char c : text)
    Take(c);
  return std::exchange(delta_, {});
}

void ToolCallParser::Take(char c) {
  switch (state_) {
    case State::kStart:
      return TakeStart(c);
    case State::kText:
      return TakeText(c);
    case State::kHeader:
      return TakeHeader(c);
    case State::kCall:
      return TakeCall(c);
    case State::kXml:
      return TakeXml(c);
  }
}

// Before the first byte that is not white space, in formats whose answers may begin with a call.
void ToolCallParser::TakeStart(char c) {
  if (options_.format == ToolFormat::kFunctionary32) {
    state_ = State::kHeader;
    return TakeHeader(c);
  }
  const bool begins = c == '{' || (c == '[' && options_.format != ToolFormat::kNamed);
  if (IsSpace(c)) {
    fallback_ += c;
  } else if (begins) {
    state_ = State::kHeader;
    TakeHeader(c);
  } else {
    AddContent(std::exchange(fallback_, {}));
    state_ = State::kText;
    TakeText(c);
  }
}

void ToolCallParser::TakeText(char c) {
  held_ += c;
  const Syntax& syntax = SyntaxOf(options_.format);
  const bool may_call = num_calls_ < (options_.single ? 1 : kMaxCalls);
  std::size_t num_held = 0;
  for (const std::string_view opener : syntax.openers) {
    if (opener.empty() || !may_call) continue;
    if (held_.ends_with(opener)) {
      AddContent(std::string_view(held_).substr(0, held_.size() - opener.size()));
      held_.clear();
      header_.clear();
      fallback_ = opener;
      after_call_ = false;
      state_ = State::kHeader;
      return;
    }
    num_held = std::max(num_held, HeldBytes(held_, opener));
  }
  AddContent(std::string_view(held_).substr(0, held_.size() - num_held));
  held_.erase(0, held_.size() - num_held);
}

// Behind the last opener, or what begins a name.
std::string_view ToolCallParser::HeaderTail() const {
  const Syntax& syntax = SyntaxOf(options_.format);
  std::string_view tail = header_;
  for (const std::string_view mark : {syntax.openers[0], syntax.openers[1], syntax.name_begin}) {
    if (mark.empty()) continue;
    const std::size_t at = tail.rfind(mark);
    if (at != std::string_view::npos) tail.remove_prefix(at + mark.size());
  }
  return tail;
}

// What stands before the object. nullopt: no name.
std::optional<std::string> ToolCallParser::NameInHeader() const {
  const Syntax& syntax = SyntaxOf(options_.format);
  std::string_view name = HeaderTail();
  if (options_.format == ToolFormat::kMistral) {
    name = name.substr(0, std::min({name.find('['), name.find('{'), name.size()}));
  } else {
    const std::size_t end = name.find(syntax.name_end);
    if (end == std::string_view::npos) return std::nullopt;
    std::string_view behind = name.substr(end + syntax.name_end.size());
    name = name.substr(0, end);
    // "function" SEP name, newline, a fence; or name SEP.
    if (options_.format == ToolFormat::kDeepSeek) {
      behind = Trimmed(behind.substr(0, behind.find("```")));
      if (!behind.empty()) name = behind;
    } else if (!Trimmed(behind).empty()) {
      return std::nullopt;
    }
  }
  if (options_.format == ToolFormat::kKimi) {
    if (name.starts_with("functions.")) name.remove_prefix(10);
    name = name.substr(0, name.rfind(':'));
  }
  name = Trimmed(name);
  if (name.empty() || name.size() > CallReader::kMaxNameBytes) return std::nullopt;
  return std::string(name);
}

// Whether nothing that follows can make a call of it.
bool ToolCallParser::HeaderIsHopeless() const {
  const Syntax& syntax = SyntaxOf(options_.format);
  if (header_.size() > kMaxHeaderBytes) return true;
  const std::string_view rest = WithoutSeparators(HeaderTail());
  if (rest.empty()) return false;
  if (syntax.closer.starts_with(rest)) return false;
  std::string_view next = HeaderTail();
  while (!next.empty() && IsSeparatorMark(next.front()))
    next.remove_prefix(1);
  for (const std::string_view opener : syntax.openers) {
    if (!opener.empty() && after_call_ && opener.starts_with(next)) return false;
  }
  const bool needs_opener = after_call_ && HeaderTail().size() == header_.size();
  switch (options_.format) {
    case ToolFormat::kDeepSeek:
    case ToolFormat::kKimi:
      return false;  // Control tokens have begun it.
    case ToolFormat::kFunctionary:
    case ToolFormat::kFunctionary32:
      return needs_opener || !MayBeName(rest, syntax.name_end);
    case ToolFormat::kMistral:
      return needs_opener || !MayBeName(rest.substr(0, rest.find('[')), "[");
    default:
      break;
  }
  if (options_.format == ToolFormat::kHermes && kXmlBegin.starts_with(rest)) return false;
  return !std::string_view("```json").starts_with(rest) &&
         !std::string_view("json").starts_with(rest);  // The fence is a mark of its own.
}

void ToolCallParser::TakeHeader(char c) {
  const Syntax& syntax = SyntaxOf(options_.format);
  if (c == '{') {
    const bool may_call = num_calls_ < (options_.single ? 1 : kMaxCalls);
    const bool is_named = options_.format == ToolFormat::kNamed;
    const bool is_bare = WithoutSeparators(HeaderTail()).empty();
    std::optional<std::string> name;
    if (is_named)
      name = options_.names.empty() ? std::string() : options_.names.front();
    else if (syntax.name_first || (options_.format == ToolFormat::kMistral && !is_bare))
      name = NameInHeader();
    const bool needs_name = !is_named && (syntax.name_first || !is_bare);
    if (may_call && (!needs_name || name)) return BeginCall(std::move(name));
    GiveUp();
    return TakeText(c);
  }
  header_ += c;
  fallback_ += c;
  if (!syntax.closer.empty() && header_.ends_with(syntax.closer)) return EndRegion();
  if (options_.format == ToolFormat::kFunctionary32 && c == '\n' && HeaderTail() == "all\n") {
    fallback_.clear();
    return EndRegion();
  }
  if (options_.format == ToolFormat::kHermes && header_.ends_with(kXmlBegin)) {
    state_ = State::kXml;
  } else if (HeaderIsHopeless()) {
    GiveUp();
  }
}

void ToolCallParser::TakeXml(char c) {
  fallback_ += c;
  if (!fallback_.ends_with(kXmlEnd)) return;
  const std::size_t begin = fallback_.find(kXmlBegin);  // It is there: it brought us here.
  std::optional<XmlCall> call =
      ReadXmlCall(std::string_view(fallback_).substr(begin), options_.tools);
  const bool may_call = num_calls_ < (options_.single ? 1 : kMaxCalls);
  if (!call || !may_call) return GiveUp();
  space_.clear();
  delta_.calls.push_back({.call_idx = num_calls_++,
                          .begins = true,
                          .name = std::move(call->name),
                          .arguments = std::move(call->arguments)});
  fallback_.clear();
  header_.clear();
  after_call_ = true;
  state_ = State::kHeader;
}

// The calls have ended; text follows. An opener without any call stays.
void ToolCallParser::EndRegion() {
  if (!after_call_) AddContent(fallback_);
  fallback_.clear();
  header_.clear();
  state_ = State::kText;
}

// No call: it was content.
void ToolCallParser::GiveUp() {
  std::string_view text = fallback_;
  while (after_call_ && !text.empty() && IsSeparatorMark(text.front()))
    text.remove_prefix(1);
  AddContent(text);
  fallback_.clear();
  header_.clear();
  after_call_ = false;
  state_ = State::kText;
}

void ToolCallParser::BeginCall(std::optional<std::string> name) {
  reader_.Start(std::move(name));
  started_ = false;
  state_ = State::kCall;
  TakeCall('{');
}

bool ToolCallParser::MayBegin(const std::string& name) const {
  // Without a mark of its own an object is a call only if it names a tool.
  const bool has_mark = after_call_ || fallback_.front() != '{';
  const bool is_known =
      std::find(options_.names.begin(), options_.names.end(), name) != options_.names.end();
  return is_known || (has_mark && !SyntaxOf(options_.format).at_start);
}

void ToolCallParser::TakeCall(char c) {
  if (!started_) fallback_ += c;
  Report(reader_.Push(c));
}

void ToolCallParser::Report(CallReader::Status status) {
  if (!started_ && reader_.name() && status != CallReader::Status::kBad) {
    if (!MayBegin(*reader_.name())) return GiveUp();
    started_ = true;
    fallback_.clear();
    space_.clear();
    delta_.calls.push_back({.call_idx = num_calls_++, .begins = true, .name = *reader_.name()});
  }
  if (started_) {
    std::string arguments = reader_.TakeArguments();
    const std::size_t call_idx = num_calls_ - 1;
    if (!arguments.empty()) {
      if (delta_.calls.empty() || delta_.calls.back().call_idx != call_idx)
        delta_.calls.push_back({.call_idx = call_idx});
      delta_.calls.back().arguments += arguments;
    }
  }
  if (status == CallReader::Status::kMore) return;
  if (!started_) return GiveUp();
  after_call_ = true;
  header_.clear();
  // What is no JSON ends the call where it stands.
  state_ = status == CallReader::Status::kDone ? State::kHeader : State::kText;
}

OutputDelta ToolCallParser::Finish() {
  switch (state_) {
    case State::kStart:
      AddContent(fallback_);
      break;
    case State::kText:
      AddContent(std::exchange(held_, {}));
      break;
    case State::kHeader: {
      const std::string_view rest = WithoutSeparators(header_);
      const bool is_end = after_call_ && SyntaxOf(options_.format).closer.starts_with(rest);
      if (!is_end) GiveUp();
      break;
    }
    case State::kCall:
      if (!started_) GiveUp();
      break;
    case State::kXml:
      GiveUp();
      break;
  }
  if (num_calls_ == 0) delta_.content += std::exchange(space_, {});
  return std::exchange(delta_, {});
}

void ToolCallParser::AddContent(std::string_view text) {
  for (const char c : text) {
    if (IsSpace(c)) {
      space_ += c;
    } else {
      delta_.content += space_;
      delta_.content += c;
      space_.clear();
    }
  }
}

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
  return Trimmed(prompt).ends_with("<think>");
}

}  // namespace kvrm
