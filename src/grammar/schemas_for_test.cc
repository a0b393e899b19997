// SPDX-License-Identifier: Apache-2.0
#include "grammar/schemas_for_test.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"

namespace kvrm {
namespace {

constexpr const char* kPatterns[] = {"^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "ab+c", "^(yes|no)$"};
constexpr const char* kFormats[] = {"date", "uuid", "ipv4", "time"};

bool IsLower(char c) {
  return c >= 'a' && c <= 'z';
}
bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

bool HasShape(std::string_view text, std::string_view shape) {
  if (text.size() != shape.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool is_hex = IsDigit(text[i]) || ((text[i] | 0x20) >= 'a' && (text[i] | 0x20) <= 'f');
    if (shape[i] == '9' ? !IsDigit(text[i]) : shape[i] == 'x' ? !is_hex : text[i] != shape[i])
      return false;
  }
  return true;
}

bool MatchesPattern(std::string_view pattern, std::string_view text) {
  if (pattern == kPatterns[0]) {
    return text.size() >= 2 && text.size() <= 5 && std::all_of(text.begin(), text.end(), IsLower);
  }
  if (pattern == kPatterns[1]) return HasShape(text, "999-9999");
  if (pattern == kPatterns[3]) return text == "yes" || text == "no";
  CHECK(pattern == kPatterns[2]);
  for (std::size_t i = text.find("ab"); i != std::string_view::npos; i = text.find("ab", i + 1)) {
    const std::size_t end = text.find_first_not_of('b', i + 1);
    if (end != std::string_view::npos && text[end] == 'c') return true;
  }
  return false;
}

int Number(std::string_view text) {
  int value = 0;
  for (const char c : text)
    value = value * 10 + (c - '0');
  return value;
}

bool IsDate(std::string_view text) {
  if (!HasShape(text, "9999-99-99")) return false;
  const int year = Number(text.substr(0, 4));
  const int month = Number(text.substr(5, 2));
  const int day = Number(text.substr(8, 2));
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  const int days[] = {31, leap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  return month >= 1 && month <= 12 && day >= 1 && day <= days[month - 1];
}

bool IsAddress(std::string_view text) {
  int count = 0;
  for (;;) {
    const std::size_t dot = std::min(text.find('.'), text.size());
    const std::string_view part = text.substr(0, dot);
    if (part.empty() || part.size() > 3 || !std::all_of(part.begin(), part.end(), IsDigit) ||
        Number(part) > 255)
      return false;
    ++count;
    if (dot == text.size()) return count == 4;
    text.remove_prefix(dot + 1);
  }
}

bool MatchesFormat(std::string_view format, std::string_view text) {
  if (format == "date") return IsDate(text);
  if (format == "uuid") return HasShape(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
  if (format == "ipv4") return IsAddress(text);
  CHECK(format == "time");
  return text.size() >= 9 && HasShape(text.substr(0, 8), "99:99:99") &&
         Number(text.substr(0, 2)) < 24 && Number(text.substr(3, 2)) < 60;
}

bool HasType(std::string_view type, const json::value& value) {
  if (type == "integer") {
    return value.is_int64() || value.is_uint64() ||
           (value.is_double() && std::trunc(value.get_double()) == value.get_double());
  }
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "boolean") return value.is_bool();
  CHECK(type == "null");
  return value.is_null();
}

bool IsValidNumber(const json::object& schema, double number) {
  const auto bound = [&](const char* name) { return schema.at(name).to_number<double>(); };
  return !(schema.contains("minimum") && number < bound("minimum")) &&
         !(schema.contains("maximum") && number > bound("maximum")) &&
         !(schema.contains("exclusiveMinimum") && number <= bound("exclusiveMinimum")) &&
         !(schema.contains("exclusiveMaximum") && number >= bound("exclusiveMaximum"));
}

bool IsValidString(const json::object& schema, std::string_view text) {
  std::size_t length = 0;
  for (const char c : text)
    length += (c & 0xC0) != 0x80;
  const json::value* least = schema.if_contains("minLength");
  const json::value* most = schema.if_contains("maxLength");
  const json::value* pattern = schema.if_contains("pattern");
  const json::value* format = schema.if_contains("format");
  return IsValidUtf8(text) && !(least && length < least->to_number<std::size_t>()) &&
         !(most && length > most->to_number<std::size_t>()) &&
         !(pattern && !MatchesPattern(pattern->as_string(), text)) &&
         !(format && !MatchesFormat(format->as_string(), text));
}

bool IsValidArray(const json::value& root, const json::object& schema, const json::array& array) {
  const json::value* least = schema.if_contains("minItems");
  const json::value* most = schema.if_contains("maxItems");
  if (least && array.size() < least->to_number<std::size_t>()) return false;
  if (most && array.size() > most->to_number<std::size_t>()) return false;
  const json::value* prefix = schema.if_contains("prefixItems");
  const std::size_t num_prefix = prefix ? prefix->as_array().size() : 0;
  const json::value* items = schema.if_contains("items");
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (i < num_prefix && !IsValid(root, prefix->as_array()[i], array[i])) return false;
    if (i >= num_prefix && items && !IsValid(root, *items, array[i])) return false;
  }
  return true;
}

bool IsValidObject(const json::value& root, const json::object& schema,
                   const json::object& object) {
  const json::value* properties = schema.if_contains("properties");
  const json::value* rest = schema.if_contains("additionalProperties");
  for (const auto& member : object) {
    const json::value* own =
        properties ? properties->as_object().if_contains(member.key()) : nullptr;
    if (own != nullptr && !IsValid(root, *own, member.value())) return false;
    if (own == nullptr && rest != nullptr && !IsValid(root, *rest, member.value())) return false;
  }
  const json::value* required = schema.if_contains("required");
  return required == nullptr ||
         std::all_of(required->as_array().begin(), required->as_array().end(),
                     [&](const json::value& name) { return object.contains(name.as_string()); });
}

class Generator {
 public:
  explicit Generator(Rng& rng) : rng_(rng) {}

  json::value Root() {
    json::object root = Object(3).as_object();
    if (rng_.Below(3) == 0) {
      // A list: each holds the next, or null.
      json::object node = Object(1).as_object();
      node["properties"].as_object()["next"] = json::object{
          {"anyOf", {json::object{{"$ref", "#/$defs/node"}}, json::object{{"type", "null"}}}}};
      root["$defs"] = json::object{{"node", node}};
      root["properties"].as_object()["list"] = json::object{{"$ref", "#/$defs/node"}};
    }
    return root;
  }

 private:
  json::value Any(int depth) {
    switch (rng_.Below(depth > 0 ? 11 : 7)) {
      case 0:
        return String();
      case 1:
        return Integer();
      case 2:
        return NumberSchema();
      case 3:
        return json::object{{"type", "boolean"}};
      case 4:
        return json::object{{"enum", {"red", 7, nullptr, "a\"b", 1.5}}};
      case 5:
        return json::object{{"type", {"null", "integer"}}};
      case 6:
        return json::object{{"const", "fixed"}};
      case 7:
        return Array(depth - 1);
      case 8:
        return json::object{{rng_.Below(2) ? "anyOf" : "oneOf", {Any(depth - 1), Any(depth - 1)}}};
      case 9:
        return AllOf(depth - 1);
      default:
        return Object(depth - 1);
    }
  }

  json::value String() {
    json::object schema = {{"type", "string"}};
    switch (rng_.Below(5)) {
      case 0:
        schema["pattern"] = kPatterns[rng_.Below(4)];
        break;
      case 1:
        schema["format"] = kFormats[rng_.Below(4)];
        break;
      case 2:
        schema["minLength"] = rng_.Below(4);
        schema["maxLength"] = rng_.Between(4, 90);
        break;
      default:
        break;
    }
    return schema;
  }

  json::value Integer() {
    json::object schema = {{"type", "integer"}};
    const auto low = static_cast<std::int64_t>(rng_.Below(400)) - 200;
    if (rng_.Below(2)) schema[rng_.Below(2) ? "minimum" : "exclusiveMinimum"] = low;
    const auto high = low + 2 + static_cast<std::int64_t>(rng_.Below(2000));
    if (rng_.Below(2)) schema[rng_.Below(2) ? "maximum" : "exclusiveMaximum"] = high;
    return schema;
  }

  json::value NumberSchema() {
    json::object schema = Integer().as_object();
    schema["type"] = "number";
    return schema;
  }

  json::value Array(int depth) {
    json::object schema = {{"type", "array"}};
    if (rng_.Below(3) > 0) schema["items"] = Any(depth);
    if (rng_.Below(4) == 0) schema["prefixItems"] = {Any(depth), Any(0)};
    if (rng_.Below(2)) schema["minItems"] = rng_.Below(3);
    if (rng_.Below(2)) schema["maxItems"] = rng_.Between(2, 6);
    return schema;
  }

  json::value AllOf(int depth) {
    json::object second = {{"properties", {{"own", Any(0)}}}, {"required", {"own"}}};
    json::object first = Object(depth).as_object();
    first.erase("additionalProperties");
    return json::object{{"allOf", {first, second}}};
  }

  json::value Object(int depth) {
    json::object properties;
    json::array required;
    const std::uint64_t count = rng_.Below(5);
    for (std::uint64_t i = 0; i < count; ++i) {
      const char* names[] = {"name", "value", "\xC3\xA9t\xC3\xA9", "a\"b", "x", "name2"};
      const std::string name = names[rng_.Below(6)];
      if (properties.contains(name)) continue;
      properties[name] = Any(depth);
      if (rng_.Below(2)) required.emplace_back(name);
    }
    json::object schema = {{"type", "object"}, {"properties", properties}, {"required", required}};
    if (rng_.Below(3) == 0) schema["additionalProperties"] = false;
    if (rng_.Below(5) == 0) schema["additionalProperties"] = Any(0);
    return schema;
  }

  Rng& rng_;
};

}  // namespace

json::value RandomSchema(Rng& rng) {
  return Generator(rng).Root();
}

std::string SchemaText(const json::value& schema) {
  return json::serialize(schema);
}

bool IsValid(const json::value& root, const json::value& schema_value, const json::value& value) {
  if (schema_value.is_bool()) return schema_value.as_bool();
  const json::object& schema = schema_value.as_object();
  const auto any_of = [&](const json::value& branches) {
    return std::any_of(branches.as_array().begin(), branches.as_array().end(),
                       [&](const json::value& one) { return IsValid(root, one, value); });
  };
  if (const json::value* ref = schema.if_contains("$ref")) {
    CHECK(ref->as_string() == "#/$defs/node");
    if (!IsValid(root, root.at("$defs").at("node"), value)) return false;
  }
  for (const char* name : {"anyOf", "oneOf"})
    if (schema.contains(name) && !any_of(schema.at(name))) return false;
  if (const json::value* all = schema.if_contains("allOf")) {
    for (const json::value& one : all->as_array())
      if (!IsValid(root, one, value)) return false;
  }
  if (const json::value* one = schema.if_contains("const"); one && *one != value) return false;
  if (const json::value* list = schema.if_contains("enum")) {
    const json::array& values = list->as_array();
    if (std::find(values.begin(), values.end(), value) == values.end()) return false;
  }
  if (const json::value* type = schema.if_contains("type")) {
    const json::array types = type->is_array() ? type->as_array() : json::array{*type};
    if (std::none_of(types.begin(), types.end(),
                     [&](const json::value& one) { return HasType(one.as_string(), value); }))
      return false;
  }
  if (value.is_number()) return IsValidNumber(schema, value.to_number<double>());
  if (value.is_string()) return IsValidString(schema, value.as_string());
  if (value.is_array()) return IsValidArray(root, schema, value.as_array());
  return !value.is_object() || IsValidObject(root, schema, value.as_object());
}

}  // namespace kvrm
