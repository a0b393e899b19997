// SPDX-License-Identifier: Apache-2.0
#include "server/python_call.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/utf8.h"
#include "server/text_marks.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxArguments = 256;
constexpr std::size_t kMaxDepth = JsonLimits{}.max_depth;

class Literals {
 public:
  explicit Literals(std::string_view text) : rest_(text) {}

  bool Take(char c) {
    SkipSpace();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  std::string_view TakeName() {
    SkipSpace();
    return TakeWhile(IsToolNameChar);
  }
  bool at_end() const { return rest_.empty(); }
  std::optional<json::value> Value(std::size_t depth);

 private:
  template <typename Predicate>
  std::string_view TakeWhile(Predicate predicate) {
    const auto end = std::find_if_not(rest_.begin(), rest_.end(), predicate);
    const std::string_view taken = rest_.substr(0, std::size_t(end - rest_.begin()));
    rest_.remove_prefix(taken.size());
    return taken;
  }
  void SkipSpace() { TakeWhile(IsSpace); }
  std::optional<json::value> List(std::size_t depth);
  std::optional<json::value> Dictionary(std::size_t depth);
  std::optional<std::string> String(char quote);
  bool Escape(std::string& text);
  std::optional<char32_t> Hex(std::size_t num_digits);

  std::string_view rest_;
};

std::optional<json::value> Literals::Value(std::size_t depth) {
  if (depth > kMaxDepth) return std::nullopt;
  if (Take('[')) return List(depth);
  if (Take('{')) return Dictionary(depth);
  for (const char quote : {'"', '\''}) {
    if (!Take(quote)) continue;
    const std::optional<std::string> text = String(quote);
    if (!text) return std::nullopt;
    return json::string(*text);
  }
  const std::string_view word =
      TakeWhile([](char c) { return IsToolNameChar(c) || c == '+'; });  // 1e+5
  if (word == "True") return true;
  if (word == "False") return false;
  if (word == "None") return nullptr;
  Result<json::value> parsed = ParseJson(word);
  if (!parsed) return std::nullopt;
  return *std::move(parsed);
}

std::optional<json::value> Literals::List(std::size_t depth) {
  json::array items;
  while (!Take(']')) {
    if (!items.empty() && !Take(',')) return std::nullopt;
    if (!items.empty() && Take(']')) break;
    std::optional<json::value> item = Value(depth + 1);
    if (!item) return std::nullopt;
    items.push_back(*std::move(item));
  }
  return items;
}

std::optional<json::value> Literals::Dictionary(std::size_t depth) {
  json::object members;
  while (!Take('}')) {
    if (!members.empty() && !Take(',')) return std::nullopt;
    if (!members.empty() && Take('}')) break;
    const std::optional<json::value> key = Value(kMaxDepth);
    if (!key || !key->is_string() || !Take(':')) return std::nullopt;
    std::optional<json::value> value = Value(depth + 1);
    if (!value) return std::nullopt;
    members[key->get_string()] = *std::move(value);
  }
  return members;
}

std::optional<std::string> Literals::String(char quote) {
  std::string text;
  while (!rest_.empty()) {
    const char c = rest_.front();
    rest_.remove_prefix(1);
    if (c == quote) return text;
    if (c != '\\')
      text += c;
    else if (!Escape(text))
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<char32_t> Literals::Hex(std::size_t num_digits) {
  std::uint32_t value = 0;
  if (rest_.size() < num_digits) return std::nullopt;
  const char* const end = rest_.data() + num_digits;
  const auto [stopped, error] = std::from_chars(rest_.data(), end, value, 16);
  if (error != std::errc() || stopped != end) return std::nullopt;
  rest_.remove_prefix(num_digits);
  return char32_t{value};
}

// Behind the backslash. One that begins no escape stands for itself, as in Python.
bool Literals::Escape(std::string& text) {
  static constexpr std::string_view kNames = "abfnrtv0\\'\"\n";
  static constexpr std::string_view kMeanings("\a\b\f\n\r\t\v\0\\'\"", 11);
  if (rest_.empty()) return false;
  const char c = rest_.front();
  rest_.remove_prefix(1);
  const std::size_t num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
  if (num_digits == 0) {
    const std::size_t at = kNames.find(c);
    if (at == std::string_view::npos)
      text += {'\\', c};
    else if (at < kMeanings.size())  // A line that goes on adds nothing.
      text += kMeanings[at];
    return true;
  }
  std::optional<char32_t> code_point = Hex(num_digits);
  if (!code_point) return false;
  if (*code_point >= 0xD800 && *code_point < 0xDC00 && rest_.starts_with("\\u")) {
    rest_.remove_prefix(2);
    const std::optional<char32_t> low = Hex(4);
    if (!low || *low < 0xDC00 || *low > 0xDFFF) return false;
    code_point = 0x10000 + ((*code_point - 0xD800) << 10) + (*low - 0xDC00);
  }
  if (*code_point > 0x10FFFF || (*code_point >= 0xD800 && *code_point <= 0xDFFF)) return false;
  AppendUtf8(text, *code_point);
  return true;
}

}  // namespace

PythonCallScanner::Status PythonCallScanner::Push(char c) {
  if (quote_ != '\0') {
    if (!escaped_ && c == quote_) quote_ = '\0';
    escaped_ = !escaped_ && c == '\\';
    return Status::kMore;
  }
  if (depth_ == 0 && c != '(') return IsToolNameChar(c) ? Status::kMore : Status::kBad;
  if (c == '"' || c == '\'') quote_ = c;
  if (c == '(' || c == '[' || c == '{') ++depth_;
  if (c == ')' || c == ']' || c == '}') --depth_;
  return depth_ == 0 ? Status::kDone : Status::kMore;
}

std::optional<ToolCall> ReadPythonCall(std::string_view text) {
  Literals literals(text);
  const std::string_view name = literals.TakeName();
  if (name.empty() || name.size() > kMaxToolNameBytes || !literals.Take('(')) return std::nullopt;
  json::object arguments;
  while (!literals.Take(')')) {
    if (!arguments.empty() && !literals.Take(',')) return std::nullopt;
    if (!arguments.empty() && literals.Take(')')) break;
    const std::string_view argument = literals.TakeName();
    if (argument.empty() || arguments.size() == kMaxArguments) return std::nullopt;
    if (!literals.Take('=')) return std::nullopt;
    // The object of the arguments is one level.
    std::optional<json::value> value = literals.Value(2);
    if (!value) return std::nullopt;
    arguments[argument] = *std::move(value);
  }
  if (!literals.at_end()) return std::nullopt;
  return ToolCall{.name = std::string(name), .arguments = json::serialize(arguments)};
}

}  // namespace kvrm
