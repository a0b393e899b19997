// SPDX-License-Identifier: Apache-2.0
#include "server/tool_fields.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <optional>
#include <string_view>
#include <utility>

namespace kvrm {
namespace {

constexpr std::size_t kMaxMessageCalls = 128;

bool IsToolName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxToolNameBytes &&
         std::all_of(name.begin(), name.end(), IsToolNameChar);
}

// {"type": "function", "function": {"name", "description"?, "parameters"?}}
std::optional<std::string> NameOfTool(const json::value& tool) {
  const json::object* object = tool.if_object();
  if (object == nullptr) return std::nullopt;
  const json::value* type = object->if_contains("type");
  const json::value* function = object->if_contains("function");
  if (type == nullptr || !type->is_string() || type->get_string() != "function")
    return std::nullopt;
  if (function == nullptr || !function->is_object()) return std::nullopt;
  const json::object& members = function->get_object();
  const json::value* name = members.if_contains("name");
  const json::value* parameters = members.if_contains("parameters");
  if (name == nullptr || !name->is_string() || !IsToolName(name->get_string())) return std::nullopt;
  if (parameters != nullptr && !parameters->is_object() && !parameters->is_null())
    return std::nullopt;
  return std::string(name->get_string());
}

void ReadChoice(JsonFields& fields, ToolFields& tools) {
  const json::value* given = fields.Get("tool_choice");
  tools.choice = tools.tools.empty() ? ToolFields::Choice::kNone : ToolFields::Choice::kAuto;
  if (given == nullptr) return;
  static constexpr const char* kShape =
      "tool_choice must be none, auto, required or a function that tools has";
  if (given->is_string()) {
    const std::string_view choice = given->get_string();
    if (choice == "none") {
      tools.choice = ToolFields::Choice::kNone;
    } else if (choice == "required" && !tools.tools.empty()) {
      tools.choice = ToolFields::Choice::kRequired;
    } else if (choice != "auto") {
      fields.Fail("tool_choice", kShape);
    }
    return;
  }
  const json::object* object = given->if_object();
  const json::value* function = object != nullptr ? object->if_contains("function") : nullptr;
  const json::value* name = function != nullptr && function->is_object()
                                ? function->get_object().if_contains("name")
                                : nullptr;
  if (name == nullptr || !name->is_string() ||
      std::find(tools.names.begin(), tools.names.end(), name->get_string()) == tools.names.end()) {
    return fields.Fail("tool_choice", kShape);
  }
  tools.choice = ToolFields::Choice::kNamed;
  tools.named = name->get_string();
}

json::value ParametersOf(const json::value& tool) {
  const json::object& function = tool.at("function").get_object();
  const json::value* parameters = function.if_contains("parameters");
  if (parameters == nullptr || parameters->is_null()) return json::object{{"type", "object"}};
  return *parameters;
}

}  // namespace

ToolFields ReadTools(JsonFields& fields) {
  ToolFields tools;
  tools.parallel = fields.Bool("parallel_tool_calls").value_or(true);
  if (const json::array* given = fields.Array("tools", kMaxTools)) {
    for (const json::value& tool : *given) {
      std::optional<std::string> name = NameOfTool(tool);
      if (!name) {
        fields.Fail("tools",
                    "tools must hold functions with a name of at most 64 letters, digits, dots, "
                    "dashes or underscores, and parameters that are an object");
        return {};
      }
      tools.names.push_back(*std::move(name));
    }
    tools.tools = *given;
  }
  ReadChoice(fields, tools);
  return tools;
}

GrammarSpec ForcedCallGrammar(const ToolFields& tools) {
  json::array forms;
  for (const json::value& tool : tools.tools) {
    const json::value& name = tool.at("function").at("name");
    if (tools.choice == ToolFields::Choice::kNamed) {
      if (name.get_string() != tools.named) continue;
      return {.kind = GrammarKind::kJsonSchema, .text = json::serialize(ParametersOf(tool))};
    }
    forms.push_back(json::object{
        {"type", "object"},
        {"properties", {{"name", {{"const", name}}}, {"parameters", ParametersOf(tool)}}},
        {"required", json::array{"name", "parameters"}},
        {"additionalProperties", false}});
  }
  json::object schema = {
      {"type", "array"}, {"minItems", 1}, {"items", {{"anyOf", std::move(forms)}}}};
  if (!tools.parallel) schema["maxItems"] = 1;
  return {.kind = GrammarKind::kJsonSchema, .text = json::serialize(schema)};
}

bool ReadMessageCalls(json::object& message, std::size_t* num_bytes) {
  json::value* calls = message.if_contains("tool_calls");
  if (calls == nullptr || calls->is_null()) return true;
  json::array* items = calls->if_array();
  if (items == nullptr || items->size() > kMaxMessageCalls) return false;
  for (json::value& item : *items) {
    json::object* call = item.if_object();
    json::value* function = call != nullptr ? call->if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object()) return false;
    const json::value* name = function->get_object().if_contains("name");
    if (name == nullptr || !name->is_string()) return false;
    json::value* arguments = function->get_object().if_contains("arguments");
    if (arguments == nullptr || !arguments->is_string()) continue;
    *num_bytes += arguments->get_string().size();
    Result<json::value> parsed = ParseJson(arguments->get_string());
    if (parsed && parsed->is_object()) *arguments = *std::move(parsed);
  }
  return true;
}

std::string ToolInstructions(const json::array& tools) {
  json::array functions;
  for (const json::value& tool : tools)
    functions.push_back(tool.at("function"));
  return "You can call these functions: " + json::serialize(functions) +
         "\nTo call one, answer with nothing but a JSON object of this form: "
         "{\"name\": \"the function\", \"arguments\": {...}}. Otherwise answer in plain text.";
}

}  // namespace kvrm
