// SPDX-License-Identifier: Apache-2.0
#include "server/xml_call.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <string>
#include <utility>

#include "server/text_marks.h"

namespace kvrm {
namespace {

constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=";
constexpr std::string_view kParameterEnd = "</parameter>";
constexpr std::string_view kKey = "<arg_key>";
constexpr std::string_view kKeyEnd = "</arg_key>";
constexpr std::string_view kValue = "<arg_value>";
constexpr std::string_view kValueEnd = "</arg_value>";
constexpr std::size_t kMaxParameters = 256;

const json::value* Member(const json::value* value, std::string_view name) {
  const json::object* object = value != nullptr ? value->if_object() : nullptr;
  return object != nullptr ? object->if_contains(name) : nullptr;
}

// Whether the schema of the tool says so, or says nothing.
bool IsString(const json::array& tools, std::string_view tool_name, std::string_view parameter) {
  for (const json::value& tool : tools) {
    const json::value* function = Member(&tool, "function");
    const json::value* name = Member(function, "name");
    if (name == nullptr || !name->is_string() || name->get_string() != tool_name) continue;
    const json::value* properties = Member(Member(function, "parameters"), "properties");
    const json::value* type = Member(Member(properties, parameter), "type");
    return type == nullptr || (type->is_string() && type->get_string() == "string");
  }
  return true;
}

// Up to `end`, which is taken off with it. nullopt: it does not come.
std::optional<std::string_view> TakeUntil(std::string_view& text, std::string_view end) {
  const std::size_t at = text.find(end);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at + end.size());
  return taken;
}

void SkipSpace(std::string_view& text) {
  while (!text.empty() && IsSpace(text.front()))
    text.remove_prefix(1);
}

// What stands at the front, taken off.
bool Take(std::string_view& text, std::string_view mark) {
  if (!text.starts_with(mark)) return false;
  text.remove_prefix(mark.size());
  return true;
}

json::value ValueOf(std::string_view text, bool is_string) {
  if (!is_string) {
    Result<json::value> parsed = ParseJson(text);
    if (parsed) return *std::move(parsed);
  }
  return json::string(text);
}

}  // namespace

std::optional<ToolCall> ReadXmlCall(std::string_view text, const json::array& tools) {
  if (!text.ends_with(kFunctionEnd) || !Take(text, kFunction)) return std::nullopt;
  text.remove_suffix(kFunctionEnd.size());
  const std::optional<std::string_view> name = TakeUntil(text, ">");
  if (!name || name->empty() || name->size() > kMaxToolNameBytes) return std::nullopt;
  json::object arguments;
  for (SkipSpace(text); !text.empty(); SkipSpace(text)) {
    if (arguments.size() == kMaxParameters || !Take(text, kParameter)) return std::nullopt;
    const std::optional<std::string_view> parameter = TakeUntil(text, ">");
    if (!parameter || parameter->empty()) return std::nullopt;
    std::optional<std::string_view> value = TakeUntil(text, kParameterEnd);
    if (!value) return std::nullopt;
    if (value->starts_with('\n')) value->remove_prefix(1);
    if (value->ends_with('\n')) value->remove_suffix(1);
    arguments[*parameter] = ValueOf(*value, IsString(tools, *name, *parameter));
  }
  return ToolCall{.name = std::string(*name), .arguments = json::serialize(arguments)};
}

std::optional<ToolCall> ReadArgKeyCall(std::string_view text, const json::array& tools) {
  const std::string_view name = Trimmed(text.substr(0, text.find(kKey)));
  if (name.empty() || name.size() > kMaxToolNameBytes ||
      !std::all_of(name.begin(), name.end(), IsToolNameChar)) {
    return std::nullopt;
  }
  text.remove_prefix(std::min(text.find(kKey), text.size()));
  json::object arguments;
  for (; !text.empty(); SkipSpace(text)) {
    if (arguments.size() == kMaxParameters || !Take(text, kKey)) return std::nullopt;
    const std::optional<std::string_view> key = TakeUntil(text, kKeyEnd);
    if (!key || Trimmed(*key).empty()) return std::nullopt;
    SkipSpace(text);
    if (!Take(text, kValue)) return std::nullopt;
    const std::optional<std::string_view> value = TakeUntil(text, kValueEnd);
    if (!value) return std::nullopt;
    const std::string_view parameter = Trimmed(*key);
    arguments[parameter] = ValueOf(*value, IsString(tools, name, parameter));
  }
  return ToolCall{.name = std::string(name), .arguments = json::serialize(arguments)};
}

}  // namespace kvrm
