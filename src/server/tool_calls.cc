// SPDX-License-Identifier: Apache-2.0
#include "server/tool_calls.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "server/text_marks.h"
#include "server/xml_call.h"

namespace kvrm {
namespace {

// A header that is longer holds no name.
constexpr std::size_t kMaxHeaderBytes = 512;
constexpr std::string_view kXmlBegin = "<function=";
constexpr std::string_view kXmlEnd = "</function>";
constexpr std::string_view kValueBegin = "<arg_value>";
constexpr std::string_view kValueEnd = "</arg_value>";

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
    Syntax{ToolFormat::kGlm, "glm", {"<tool_call>"}, "</tool_call>"},
    Syntax{ToolFormat::kLfm, "lfm", {"<|tool_call_start|>"}, "<|tool_call_end|>"},
    Syntax{ToolFormat::kHarmony, "harmony", {}, ""},
};

const Syntax& SyntaxOf(ToolFormat format) {
  return *std::find_if(kSyntaxes.begin(), kSyntaxes.end(),
                       [&](const Syntax& syntax) { return syntax.format == format; });
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

// Whether `text` can become a name and `end`, and nothing but white space behind it.
bool MayBeName(std::string_view text, std::string_view end) {
  const std::size_t at = text.find(end);
  const std::string_view name = text.substr(0, at);
  const bool is_plain = std::all_of(name.begin(), name.end(), IsToolNameChar);
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
  if (has("<|channel|>") && has("<|message|>")) return ToolFormat::kHarmony;
  if (has("[TOOL_CALLS]")) return ToolFormat::kMistral;
  if (has("tool▁call▁begin")) return ToolFormat::kDeepSeek;
  if (has("<|tool_call_begin|>")) return ToolFormat::kKimi;
  if (has(">>>all")) return ToolFormat::kFunctionary32;
  if (has("functools[")) return ToolFormat::kFirefunction;
  if (has("<|START_ACTION|>") || has("Action:")) return ToolFormat::kCommandR;
  if (has("<|tool_call|>")) return ToolFormat::kGranite;
  if (has("<TOOLCALL>")) return ToolFormat::kNemotron;
  if (has("<tool_calls>")) return ToolFormat::kMiniMax;
  if (has("<arg_key>")) return ToolFormat::kGlm;
  // Not all templates of the family write calls; all list the tools in these words.
  if (has("<|tool_call_start|>") || has("<|tool_list_start|>") || has("List of tools: ["))
    return ToolFormat::kLfm;
  // Others write XML parameters into a function inside a <tool_call>.
  if (has("<function=") && !has("<parameter=")) return ToolFormat::kFunctionary;
  if (has("<tool_call>")) return ToolFormat::kHermes;
  if (has("\"parameters\"") && (has("<|python_tag|>") || has("<|start_header_id|>")))
    return ToolFormat::kLlama;
  return ToolFormat::kJson;
}

ToolCallParser::ToolCallParser(ToolParserOptions options) : options_(std::move(options)) {
  if (options_.format == ToolFormat::kHarmony) {
    harmony_.emplace(HarmonyOptions{.names = options_.names,
                                    .max_calls = options_.max_calls,
                                    .split_reasoning = options_.split_reasoning,
                                    .starts_in_reasoning = options_.starts_in_reasoning});
  }
  if (!SyntaxOf(options_.format).at_start) state_ = State::kText;
}

OutputDelta ToolCallParser::Push(std::string_view text) {
  if (harmony_) return harmony_->Push(text);
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
    case State::kBlock:
      return TakeBlock(c);
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
  const bool may_call = num_calls_ < options_.max_calls;
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
    const bool may_call = num_calls_ < options_.max_calls;
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
  if (MayBeginBlock(c)) {
    BeginBlock(options_.format == ToolFormat::kHermes ? kXmlBegin.size() : 1);
  } else if (HeaderIsHopeless()) {
    GiveUp();
  }
}

// Whether what the header ends with begins a call in the format's own notation.
bool ToolCallParser::MayBeginBlock(char c) const {
  switch (options_.format) {
    case ToolFormat::kHermes:
      return header_.ends_with(kXmlBegin);
    case ToolFormat::kGlm:
      return !after_call_ && IsToolNameChar(c) && WithoutSeparators(HeaderTail()).size() == 1;
    case ToolFormat::kLfm:
      return IsToolNameChar(c) && WithoutSeparators(HeaderTail()).size() == 1;
    default:
      return false;
  }
}

// The last `num_bytes` of the header belong to it.
void ToolCallParser::BeginBlock(std::size_t num_bytes) {
  block_begin_ = fallback_.size() - num_bytes;
  in_value_ = false;
  scanner_ = {};
  state_ = State::kBlock;
  if (options_.format == ToolFormat::kLfm) scanner_.Push(fallback_.back());
}

// After `c` has come.
PythonCallScanner::Status ToolCallParser::BlockStatus(char c) {
  using Scan = PythonCallScanner::Status;
  if (options_.format == ToolFormat::kLfm) return scanner_.Push(c);
  if (options_.format == ToolFormat::kHermes)
    return fallback_.ends_with(kXmlEnd) ? Scan::kDone : Scan::kMore;
  // A value may hold the text that ends a call.
  if (c != '>') return Scan::kMore;
  if (fallback_.ends_with(kValueBegin)) in_value_ = true;
  if (fallback_.ends_with(kValueEnd)) in_value_ = false;
  const std::string_view closer = SyntaxOf(options_.format).closer;
  return !in_value_ && fallback_.ends_with(closer) ? Scan::kDone : Scan::kMore;
}

std::optional<ToolCall> ToolCallParser::ReadBlock() const {
  std::string_view block = std::string_view(fallback_).substr(block_begin_);
  if (options_.format == ToolFormat::kLfm) return ReadPythonCall(block);
  if (options_.format == ToolFormat::kHermes) return ReadXmlCall(block, options_.tools);
  block.remove_suffix(SyntaxOf(options_.format).closer.size());
  return ReadArgKeyCall(block, options_.tools);
}

void ToolCallParser::TakeBlock(char c) {
  fallback_ += c;
  const PythonCallScanner::Status status = BlockStatus(c);
  if (status == PythonCallScanner::Status::kMore) return;
  if (status == PythonCallScanner::Status::kBad) {
    fallback_.pop_back();
    GiveUp();
    return TakeText(c);  // It may begin an opener.
  }
  std::optional<ToolCall> call;
  if (num_calls_ < options_.max_calls) call = ReadBlock();
  if (!call) return GiveUp();
  space_.clear();
  delta_.calls.push_back({.call_idx = num_calls_++,
                          .begins = true,
                          .name = std::move(call->name),
                          .arguments = std::move(call->arguments)});
  fallback_.clear();
  header_.clear();
  after_call_ = true;
  // The block of kGlm ends with the closer.
  state_ = options_.format == ToolFormat::kGlm ? State::kText : State::kHeader;
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
  if (harmony_) return harmony_->Finish();
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
    case State::kBlock:
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

}  // namespace kvrm
