// SPDX-License-Identifier: Apache-2.0
#include "server/xml_call.h"

#include <boost/json/serialize.hpp>
#include <utility>

namespace kvrm {
namespace {

constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=";
constexpr std::string_view kParameterEnd = "</parameter>";
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
  while (!text.empty() && (text.front() == ' ' || text.front() == '\n' || text.front() == '\r' ||
                           text.front() == '\t'))
    text.remove_prefix(1);
}

json::value ValueOf(std::string_view text, bool is_string) {
  if (text.starts_with('\n')) text.remove_prefix(1);
  if (text.ends_with('\n')) text.remove_suffix(1);
  if (!is_string) {
    Result<json::value> parsed = ParseJson(text);
    if (parsed) return *std::move(parsed);
  }
  return json::string(text);
}

}  // namespace

std::optional<XmlCall> ReadXmlCall(std::string_view text, const json::array& tools) {
  if (!text.starts_with(kFunction) || !text.ends_with(kFunctionEnd)) return std::nullopt;
  text.remove_prefix(kFunction.size());
  text.remove_suffix(kFunctionEnd.size());
  const std::optional<std::string_view> name = TakeUntil(text, ">");
  if (!name || name->empty() || name->size() > 64) return std::nullopt;
  json::object arguments;
  for (SkipSpace(text); !text.empty(); SkipSpace(text)) {
    if (!text.starts_with(kParameter) || arguments.size() == kMaxParameters) return std::nullopt;
    text.remove_prefix(kParameter.size());
    const std::optional<std::string_view> parameter = TakeUntil(text, ">");
    if (!parameter || parameter->empty()) return std::nullopt;
    const std::optional<std::string_view> value = TakeUntil(text, kParameterEnd);
    if (!value) return std::nullopt;
    arguments[*parameter] = ValueOf(*value, IsString(tools, *name, *parameter));
  }
  return XmlCall{.name = std::string(*name), .arguments = json::serialize(arguments)};
}

}  // namespace kvrm
