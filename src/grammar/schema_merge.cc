// SPDX-License-Identifier: Apache-2.0
#include "grammar/schema_merge.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <charconv>
#include <optional>
#include <vector>

namespace kvrm::grammar {
namespace {

// Values copied while merging: sixteen schemas of the greatest size.
constexpr std::uint64_t kMaxCopied = std::uint64_t{16} * 32768;

constexpr std::string_view kAsserting[] = {"$ref",
                                           "additionalProperties",
                                           "allOf",
                                           "anyOf",
                                           "const",
                                           "enum",
                                           "exclusiveMaximum",
                                           "exclusiveMinimum",
                                           "format",
                                           "items",
                                           "maxItems",
                                           "maxLength",
                                           "maximum",
                                           "minItems",
                                           "minLength",
                                           "minProperties",
                                           "minimum",
                                           "multipleOf",
                                           "oneOf",
                                           "pattern",
                                           "prefixItems",
                                           "properties",
                                           "required",
                                           "type",
                                           "unevaluatedProperties",
                                           "uniqueItems"};
constexpr std::string_view kNotSupported[] = {"$dynamicRef",
                                              "$recursiveRef",
                                              "additionalItems",
                                              "contains",
                                              "dependencies",
                                              "dependentRequired",
                                              "dependentSchemas",
                                              "else",
                                              "if",
                                              "maxContains",
                                              "maxProperties",
                                              "minContains",
                                              "not",
                                              "patternProperties",
                                              "propertyNames",
                                              "then",
                                              "unevaluatedItems"};

Error Contradiction(std::string_view name) {
  return {ErrorCode::kUnsupported,
          "allOf, anyOf or $ref would have to merge two of '" + std::string(name) + "'"};
}

std::vector<std::string> Types(const json::value& type) {
  std::vector<std::string> types;
  if (const json::string* one = type.if_string()) types.emplace_back(*one);
  if (const json::array* many = type.if_array()) {
    for (const json::value& one : *many)
      if (one.is_string()) types.emplace_back(one.get_string());
  }
  return types;
}

// Integers are numbers.
json::value CommonTypes(const json::value& a, const json::value& b) {
  json::array common;
  const auto add = [&](const std::string& type) {
    const json::value value(type);
    if (std::find(common.begin(), common.end(), value) == common.end()) common.push_back(value);
  };
  for (const std::string& x : Types(a)) {
    for (const std::string& y : Types(b)) {
      if (x == y || (x == "integer" && y == "number")) add(x);
      if (x == "number" && y == "integer") add(y);
    }
  }
  return common;
}

std::uint64_t CountValues(const json::value& value) {
  std::uint64_t count = 1;
  if (const json::array* array = value.if_array()) {
    for (const json::value& item : *array)
      count += CountValues(item);
  }
  if (const json::object* object = value.if_object()) {
    for (const auto& member : *object)
      count += CountValues(member.value());
  }
  return count;
}

json::array Listed(const json::value& value) {
  return value.is_array() ? value.get_array() : json::array{};
}

json::value Both(const json::value& a, const json::value& b) {
  if (a == b) return a;
  if (a == json::value(true)) return b;
  if (b == json::value(true)) return a;
  if (a == json::value(false) || b == json::value(false)) return false;
  return json::object{{"allOf", json::array{a, b}}};
}

double NumberOf(const json::value& value) {
  boost::system::error_code code;
  return value.to_number<double>(code);
}

}  // namespace

Keyword KeywordOf(std::string_view name) {
  const auto is_in = [&](const auto& list) {
    return std::find(std::begin(list), std::end(list), name) != std::end(list);
  };
  if (is_in(kAsserting)) return Keyword::kAsserts;
  return is_in(kNotSupported) ? Keyword::kUnsupported : Keyword::kSaysNothing;
}

bool Asserts(const json::object& schema) {
  return std::any_of(schema.begin(), schema.end(), [](const auto& member) {
    return KeywordOf(member.key()) != Keyword::kSaysNothing;
  });
}

Result<const json::value*> SchemaMerger::Resolve(std::string_view ref) const {
  const std::string shown(ref.substr(0, 64));
  if (ref.empty() || ref[0] != '#') {
    return Error{ErrorCode::kUnsupported,
                 "$ref '" + shown + "' leads out of the schema; only '#...' is supported"};
  }
  if (ref.size() > 1 && ref[1] != '/')
    return Error{ErrorCode::kUnsupported, "$ref '" + shown + "': anchors are not supported"};
  const json::value* at = &root_;
  std::string_view rest = ref.substr(1);
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::size_t end = std::min(rest.find('/'), rest.size());
    std::string token(rest.substr(0, end));
    rest.remove_prefix(end);
    for (std::size_t i = token.find('~'); i != std::string::npos; i = token.find('~', i + 1))
      token.replace(i, 2, token.substr(i, 2) == "~1" ? "/" : "~");
    const json::value* next = nullptr;
    if (const json::object* object = at->if_object()) next = object->if_contains(token);
    if (const json::array* array = at->if_array()) {
      std::size_t index = 0;
      const auto [end_of_index, failure] =
          std::from_chars(token.data(), token.data() + token.size(), index);
      if (failure == std::errc() && end_of_index == token.data() + token.size())
        next = array->if_contains(index);
    }
    if (next == nullptr)
      return Error{ErrorCode::kInvalidArgument, "$ref '" + shown + "' leads nowhere"};
    at = next;
  }
  return at;
}

bool SchemaMerger::Spend(const json::value& copied) {
  if (num_copied_ <= kMaxCopied) num_copied_ += CountValues(copied);
  return num_copied_ <= kMaxCopied;
}

Result<json::object> SchemaMerger::Flatten(const json::value& schema, std::uint32_t depth) {
  if (depth > kMaxSchemaDepth) {
    return Error{ErrorCode::kTooLarge, "schemas are nested deeper than " +
                                           std::to_string(kMaxSchemaDepth) +
                                           ", or refer to themselves alone"};
  }
  if (!Spend(schema)) return Error{ErrorCode::kTooLarge, "allOf and $ref merge too much"};
  if (schema == json::value(true)) return json::object{};
  if (schema == json::value(false)) return json::object{{"type", json::array{}}};
  const json::object* object = schema.if_object();
  if (object == nullptr)
    return Error{ErrorCode::kInvalidArgument, "a schema must be an object or a boolean"};
  json::object flat = *object;
  flat.erase("$ref");
  flat.erase("allOf");
  std::vector<const json::value*> others;
  if (const json::value* ref = object->if_contains("$ref")) {
    if (!ref->is_string()) return Error{ErrorCode::kInvalidArgument, "$ref must be a string"};
    Result<const json::value*> target = Resolve(ref->get_string());
    if (!target) return target.error();
    others.push_back(*target);
  }
  if (const json::value* all = object->if_contains("allOf")) {
    if (!all->is_array()) return Error{ErrorCode::kInvalidArgument, "allOf must be an array"};
    for (const json::value& one : all->get_array())
      others.push_back(&one);
  }
  for (const json::value* other : others) {
    Result<json::object> part = Flatten(*other, depth + 1);
    if (!part) return part.error();
    Result<json::object> merged = Merge(std::move(flat), *part);
    if (!merged) return merged.error();
    flat = std::move(*merged);
  }
  return flat;
}

Result<json::object> SchemaMerger::Merge(json::object a, const json::object& b) {
  if (!Spend(json::value(b))) return Error{ErrorCode::kTooLarge, "allOf and $ref merge too much"};
  // What one says of all items the merged one would say of those behind the other's prefix.
  const auto divides = [](const json::object& x, const json::object& y) {
    const json::value* prefix = x.if_contains("prefixItems");
    const json::value* other = y.if_contains("prefixItems");
    return prefix != nullptr && y.contains("items") && (other == nullptr || *other != *prefix);
  };
  if (divides(a, b) || divides(b, a)) return Contradiction("prefixItems");
  if (const Status merged = MergeObjects(a, b); !merged) return merged.error();
  for (const auto& member : b) {
    const std::string_view name = member.key();
    if (KeywordOf(name) == Keyword::kSaysNothing || name == "properties" ||
        name == "additionalProperties")
      continue;
    if (const Status merged = MergeKeyword(a, b, name); !merged) return merged.error();
  }
  return a;
}

Status SchemaMerger::MergeKeyword(json::object& to, const json::object& from,
                                  std::string_view name) {
  const json::value& value = from.at(name);
  json::value* own = to.if_contains(name);
  if (own == nullptr) {
    to[name] = value;
    return Done{};
  }
  if (*own == value) return Done{};
  if (name == "type") {
    *own = CommonTypes(*own, value);
  } else if (name == "enum") {
    json::array common;
    const json::array theirs = Listed(value);
    for (const json::value& one : Listed(*own))
      if (std::find(theirs.begin(), theirs.end(), one) != theirs.end()) common.push_back(one);
    *own = std::move(common);
  } else if (name == "const") {
    to["type"] = json::array{};
  } else if (name == "required") {
    json::array names = Listed(*own);
    for (const json::value& one : Listed(value))
      if (std::find(names.begin(), names.end(), one) == names.end()) names.push_back(one);
    *own = std::move(names);
  } else if (name == "items") {
    *own = Both(*own, value);
  } else if (name == "uniqueItems" || name == "unevaluatedProperties") {
    *own = name == "uniqueItems";
  } else if ((name.substr(0, 3) == "min" || name == "exclusiveMinimum") && own->is_number() &&
             value.is_number()) {
    if (NumberOf(*own) < NumberOf(value)) *own = value;
  } else if ((name.substr(0, 3) == "max" || name == "exclusiveMaximum") && own->is_number() &&
             value.is_number()) {
    if (NumberOf(*own) > NumberOf(value)) *own = value;
  } else {
    return Contradiction(name);
  }
  return Done{};
}

// Properties of both, those of one under what the other says of additional ones.
Status SchemaMerger::MergeObjects(json::object& to, const json::object& from) {
  const auto properties = [](const json::object& schema) {
    const json::value* value = schema.if_contains("properties");
    return value != nullptr && value->is_object() ? value->get_object() : json::object{};
  };
  const auto additional = [](const json::object& schema) -> std::optional<json::value> {
    const json::value* value = schema.if_contains("additionalProperties");
    return value == nullptr ? std::nullopt : std::optional(*value);
  };
  const json::object own = properties(to);
  const json::object theirs = properties(from);
  const std::optional<json::value> own_rest = additional(to);
  const std::optional<json::value> their_rest = additional(from);
  json::object merged;
  for (const auto& member : own) {
    const json::value* other = theirs.if_contains(member.key());
    if (other == nullptr && their_rest) other = &*their_rest;
    merged[member.key()] = other == nullptr ? member.value() : Both(member.value(), *other);
  }
  for (const auto& member : theirs) {
    if (own.contains(member.key())) continue;
    merged[member.key()] = own_rest ? Both(member.value(), *own_rest) : member.value();
  }
  if (to.contains("properties") || from.contains("properties")) to["properties"] = merged;
  if (!their_rest) return Done{};
  to["additionalProperties"] = own_rest ? Both(*own_rest, *their_rest) : *their_rest;
  return Done{};
}

}  // namespace kvrm::grammar
