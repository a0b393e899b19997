// SPDX-License-Identifier: Apache-2.0
#include "grammar/json_schema.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <map>
#include <string>

#include "base/json.h"
#include "base/utf8.h"
#include "grammar/json_parts.h"
#include "grammar/regex.h"
#include "grammar/schema_merge.h"

namespace kvrm::grammar {
namespace {

constexpr std::size_t kMaxJsonDepth = 2 * kMaxSchemaDepth + 16;
constexpr std::int64_t kMaxBound = 999'999'999'999'999;
constexpr std::uint32_t kMaxLength = 1u << 17;
constexpr std::uint32_t kMaxMinLength = 65536;
// Each nests in the one before.
constexpr std::size_t kMaxPrefixItems = 32;

const json::value* Find(const json::object& object, std::string_view name) {
  return object.if_contains(name);
}

bool IsWhole(const json::value& value) {
  if (value.is_int64() || value.is_uint64()) return true;
  return value.is_double() && std::floor(value.get_double()) == value.get_double() &&
         std::abs(value.get_double()) < 1e15;
}

bool HasType(const json::value& value, std::string_view type) {
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "number") return value.is_number();
  return type == "integer" && value.is_number() && IsWhole(value);
}

// The type that a keyword speaks of; "": of any.
std::string_view TypeOf(std::string_view keyword) {
  for (const std::string_view name :
       {"properties", "required", "additionalProperties", "minProperties", "unevaluatedProperties"})
    if (keyword == name) return "object";
  for (const std::string_view name :
       {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"})
    if (keyword == name) return "array";
  for (const std::string_view name : {"pattern", "format", "minLength", "maxLength"})
    if (keyword == name) return "string";
  for (const std::string_view name :
       {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
    if (keyword == name) return "number";
  return "";
}

std::u32string CodePoints(std::string_view text) {
  std::u32string out;
  for (std::size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    out.push_back(c.code_point);
    pos += c.size;
  }
  return out;
}

class Compiler {
 public:
  Compiler(const json::value& root, Ast& ast)
      : root_(root), ast_(ast), parts_(ast), merger_(root) {}

  Status Run() {
    ast_.root = ast_.AddRule("the schema");
    ast_.Define(ast_.root, Schema(root_, 0));
    // A rule for each $ref; the list grows while it is worked through.
    for (std::size_t i = 0; i < pending_.size() && !failed_; ++i) {
      const auto [rule, target] = pending_[i];
      ast_.Define(rule, Schema(*target, 0));
    }
    if (failed_) return error_;
    return Done{};
  }

 private:
  NodeId Fail(Error error) {
    if (!failed_) error_ = {error.code, "json_schema: " + error.message};
    failed_ = true;
    return ast_.Nothing();
  }
  NodeId Invalid(std::string message) {
    return Fail({ErrorCode::kInvalidArgument, std::move(message)});
  }
  NodeId Unsupported(std::string message) {
    return Fail({ErrorCode::kUnsupported, std::move(message)});
  }

  NodeId Schema(const json::value& schema, std::uint32_t depth) {
    if (failed_ || ast_.overflowed()) return ast_.Nothing();
    if (depth > kMaxSchemaDepth) {
      return Fail({ErrorCode::kTooLarge,
                   "schemas are nested deeper than " + std::to_string(kMaxSchemaDepth)});
    }
    if (++num_nodes_ > kMaxSchemaNodes) {
      return Fail({ErrorCode::kTooLarge,
                   "there are more than " + std::to_string(kMaxSchemaNodes) + " schemas in it"});
    }
    if (schema.is_bool()) return schema.get_bool() ? parts_.Value() : ast_.Nothing();
    const json::object* object = schema.if_object();
    if (object == nullptr) return Invalid("a schema must be an object or a boolean");
    if (!Asserts(*object)) return parts_.Value();
    if (const json::value* ref = Find(*object, "$ref"); ref != nullptr && IsAlone(*object))
      return Reference(*ref);
    if (!object->contains("$ref") && !object->contains("allOf")) return Flat(*object, depth);
    const Result<json::object> flat = merger_.Flatten(schema);
    return flat ? Flat(flat.value(), depth) : Fail(flat.error());
  }

  static bool IsAlone(const json::object& object) {
    return std::count_if(object.begin(), object.end(), [](const auto& member) {
             return KeywordOf(member.key()) != Keyword::kSaysNothing;
           }) == 1;
  }

  NodeId Reference(const json::value& ref) {
    if (!ref.is_string()) return Invalid("$ref must be a string");
    const std::string name(ref.get_string());
    const auto [slot, is_new] = references_.try_emplace(name, RuleId{0});
    if (is_new) {
      const Result<const json::value*> target = merger_.Resolve(name);
      if (!target) return Fail(target.error());
      slot->second = ast_.AddRule(name);
      pending_.emplace_back(slot->second, target.value());
    }
    return ast_.Call(slot->second);
  }

  // Without $ref and allOf.
  NodeId Flat(const json::object& schema, std::uint32_t depth) {
    for (const auto& member : schema) {
      if (KeywordOf(member.key()) == Keyword::kUnsupported)
        return Unsupported("'" + std::string(member.key()) + "' is not supported");
    }
    if (!Asserts(schema)) return parts_.Value();
    for (const std::string_view name : {"anyOf", "oneOf"})
      if (schema.contains(name)) return AnyOf(schema, name, depth);
    if (schema.contains("const") || schema.contains("enum")) return Values(schema);
    std::vector<NodeId> kids;
    for (const std::string& type : TypesOf(schema))
      kids.push_back(OfType(schema, type, depth));
    return failed_ ? ast_.Nothing() : ast_.Alternate(std::move(kids));
  }

  NodeId AnyOf(const json::object& schema, std::string_view name, std::uint32_t depth) {
    json::object base = schema;
    base.erase(name);
    const json::value& branches = schema.at(name);
    if (!branches.is_array() || branches.get_array().empty())
      return Invalid(std::string(name) + " must be an array that is not empty");
    const bool has_base = Asserts(base);
    std::vector<NodeId> kids;
    for (const json::value& branch : branches.get_array()) {
      if (failed_) break;
      if (!has_base) {
        kids.push_back(Schema(branch, depth + 1));
        continue;
      }
      Result<json::object> flat = merger_.Flatten(branch);
      if (!flat) return Fail(flat.error());
      const Result<json::object> merged = merger_.Merge(base, *flat);
      if (!merged) return Fail(merged.error());
      kids.push_back(Schema(merged.value(), depth + 1));
    }
    return ast_.Alternate(std::move(kids));
  }

  NodeId Values(const json::object& schema) {
    for (const auto& member : schema) {
      const std::string_view name = member.key();
      if (KeywordOf(name) == Keyword::kAsserts && name != "const" && name != "enum" &&
          name != "type")
        return Unsupported("enum or const together with '" + std::string(name) +
                           "' is not supported");
    }
    const json::value* listed = Find(schema, "enum");
    const json::value* single = Find(schema, "const");
    if (listed != nullptr && !listed->is_array()) return Invalid("enum must be an array");
    json::array values = single != nullptr ? json::array{*single} : listed->get_array();
    std::vector<NodeId> kids;
    for (const json::value& value : values) {
      if (single != nullptr && listed != nullptr &&
          std::find(listed->get_array().begin(), listed->get_array().end(), value) ==
              listed->get_array().end())
        continue;
      if (schema.contains("type") && !IsOfType(value, schema.at("type"))) continue;
      kids.push_back(ast_.Literal(json::serialize(value)));
    }
    return ast_.Alternate(std::move(kids));
  }

  bool IsOfType(const json::value& value, const json::value& type) {
    if (const json::string* one = type.if_string()) return HasType(value, *one);
    const json::array* many = type.if_array();
    return many != nullptr && std::any_of(many->begin(), many->end(), [&](const json::value& one) {
             return one.is_string() && HasType(value, one.get_string());
           });
  }

  std::vector<std::string> TypesOf(const json::object& schema) {
    std::vector<std::string> types;
    const auto add = [&](std::string_view type) {
      if (std::find(types.begin(), types.end(), type) == types.end()) types.emplace_back(type);
    };
    if (const json::value* type = Find(schema, "type")) {
      const json::array one = {*type};
      for (const json::value& t : type->is_array() ? type->get_array() : one) {
        if (!t.is_string()) return Invalid("type must be a string or an array of them"), types;
        add(std::string_view(t.get_string()));
      }
      return types;
    }
    for (const auto& member : schema) {
      const std::string_view type = TypeOf(member.key());
      if (!type.empty()) add(type);
    }
    return types;
  }

  NodeId OfType(const json::object& schema, const std::string& type, std::uint32_t depth) {
    if (type == "string") return StringType(schema);
    if (type == "integer" || type == "number") return NumberType(schema, type == "integer");
    if (type == "object") return ObjectType(schema, depth);
    if (type == "array") return ArrayType(schema, depth);
    if (type == "boolean") return parts_.Boolean();
    if (type == "null") return parts_.Null();
    return Invalid("type '" + type.substr(0, 64) + "' does not exist");
  }

  // The keyword's value, at least 0; `absent` where it is not there.
  std::uint64_t Count(const json::object& schema, std::string_view name, std::uint64_t absent) {
    const json::value* value = Find(schema, name);
    if (value == nullptr) return absent;
    if (value->is_number() && IsWhole(*value)) {
      boost::system::error_code code;
      const double number = value->to_number<double>(code);
      if (number >= 0) return static_cast<std::uint64_t>(std::min(number, 1e15));
    }
    Invalid("'" + std::string(name) + "' must be a whole number, at least 0");
    return absent;
  }

  NodeId StringType(const json::object& schema) {
    const json::value* pattern = Find(schema, "pattern");
    const json::value* format = Find(schema, "format");
    const bool has_length = schema.contains("minLength") || schema.contains("maxLength");
    if ((pattern != nullptr) + (format != nullptr) + has_length > 1) {
      return Unsupported(
          "of 'pattern', 'format' and 'minLength' or 'maxLength' only one at a time is supported");
    }
    if (pattern != nullptr) {
      if (!pattern->is_string()) return Invalid("pattern must be a string");
      const Result<NodeId> content = ParseRegex(pattern->get_string(), RegexUse::kJsonString, ast_);
      return content ? parts_.Quoted(content.value()) : Fail(content.error());
    }
    if (format != nullptr) {
      if (!format->is_string()) return Invalid("format must be a string");
      const Result<NodeId> content = parts_.Format(format->get_string());
      return content ? content.value() : Fail(content.error());
    }
    const std::uint64_t min = Count(schema, "minLength", 0);
    const std::uint64_t max = Count(schema, "maxLength", kUnbounded);
    if (min > kMaxMinLength) {
      return Fail(
          {ErrorCode::kTooLarge, "minLength is more than " + std::to_string(kMaxMinLength)});
    }
    if (min > max) return ast_.Nothing();
    // What may be longer need not be.
    const bool is_bounded = schema.contains("maxLength");
    return parts_.StringOfLength(
        static_cast<std::uint32_t>(min),
        is_bounded ? static_cast<std::uint32_t>(std::min<std::uint64_t>(max, kMaxLength))
                   : kUnbounded);
  }

  // Rounded towards what is allowed where only integers are.
  std::optional<std::int64_t> Bound(const json::object& schema, std::string_view name,
                                    bool is_integer) {
    const json::value* value = Find(schema, name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) return Invalid("'" + std::string(name) + "' must be a number"), 0;
    boost::system::error_code code;
    const double number = value->to_number<double>(code);
    if (!(std::abs(number) <= static_cast<double>(kMaxBound)))
      return Unsupported("'" + std::string(name) + "' beyond 10^15 is not supported"), 0;
    if (std::floor(number) == number) return static_cast<std::int64_t>(number);
    if (!is_integer) {
      return Unsupported("'" + std::string(name) + "' of a number must be whole; '" +
                         json::serialize(*value).substr(0, 32) + "' is not supported"),
             0;
    }
    const bool is_low = name == "minimum" || name == "exclusiveMinimum";
    // Behind the next integer in the way that excludes: between two integers nothing is excluded.
    const bool excludes = name.substr(0, 9) == "exclusive";
    const double up = std::ceil(number);
    return static_cast<std::int64_t>(is_low ? up - excludes : up - 1 + excludes);
  }

  NodeId NumberType(const json::object& schema, bool is_integer) {
    if (const json::value* step = Find(schema, "multipleOf");
        step != nullptr && !(is_integer && step->is_number() && *step == json::value(1))) {
      return Unsupported("'multipleOf' is not supported");
    }
    NumberBounds bounds = {.low = Bound(schema, "minimum", is_integer),
                           .high = Bound(schema, "maximum", is_integer)};
    const auto low = Bound(schema, "exclusiveMinimum", is_integer);
    const auto high = Bound(schema, "exclusiveMaximum", is_integer);
    if (low && (!bounds.low || *low >= *bounds.low)) bounds.low = low, bounds.excludes_low = true;
    if (high && (!bounds.high || *high <= *bounds.high))
      bounds.high = high, bounds.excludes_high = true;
    if (failed_) return ast_.Nothing();
    if (!bounds.low && !bounds.high) return is_integer ? parts_.Integer() : parts_.Number();
    return is_integer ? parts_.IntegerWithin(bounds) : parts_.NumberWithin(bounds);
  }

  NodeId ObjectType(const json::object& schema, std::uint32_t depth) {
    static const json::object kNone;
    static const json::array kNoNames;
    const json::value* listed = Find(schema, "properties");
    const json::value* rest = Find(schema, "additionalProperties");
    const json::value* names = Find(schema, "required");
    if (listed != nullptr && !listed->is_object()) return Invalid("properties must be an object");
    if (names != nullptr && !names->is_array()) return Invalid("required must be an array");
    const json::object& properties = listed != nullptr ? listed->get_object() : kNone;
    const json::array& required = names != nullptr ? names->get_array() : kNoNames;
    if (const json::value* others = Find(schema, "unevaluatedProperties");
        others != nullptr && (*others != json::value(false) || rest != nullptr))
      return Unsupported("'unevaluatedProperties' other than false is not supported");
    if (Count(schema, "minProperties", 0) > required.size())
      return Unsupported("'minProperties' of more than what is required is not supported");
    if (listed == nullptr && rest == nullptr && required.empty()) return parts_.Object();

    std::vector<NodeId> items;
    std::string flags;
    std::vector<std::u32string> keys;
    const auto add = [&](std::string_view name, const json::value& value, bool is_required) {
      items.push_back(parts_.Member(parts_.Key(name), Schema(value, depth + 1)));
      flags += is_required ? '1' : '0';
      keys.push_back(CodePoints(name));
    };
    const auto is_required = [&](std::string_view name) {
      return std::any_of(required.begin(), required.end(), [&](const json::value& one) {
        return one.is_string() && one.get_string() == name;
      });
    };
    for (const auto& member : properties)
      add(member.key(), member.value(), is_required(member.key()));
    for (const json::value& name : required) {
      if (!name.is_string()) return Invalid("required must have strings");
      const std::u32string key = CodePoints(name.get_string());
      if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
      add(name.get_string(), rest != nullptr ? *rest : json::value(true), true);
      if (failed_) break;
    }
    const bool has_rest = rest != nullptr && *rest != json::value(false);
    if (failed_ || ast_.overflowed()) return ast_.Nothing();
    const NodeId more =
        has_rest ? parts_.Member(parts_.KeyOtherThan(std::move(keys)), Schema(*rest, depth + 1))
                 : kNoNode;
    return parts_.Braces(ast_.List(parts_.Comma(), more, items, std::move(flags)));
  }

  NodeId ArrayType(const json::object& schema, std::uint32_t depth) {
    const std::uint64_t min = Count(schema, "minItems", 0);
    const std::uint64_t max =
        std::min<std::uint64_t>(Count(schema, "maxItems", kUnbounded), kUnbounded);
    const json::value* items = Find(schema, "items");
    const json::value* prefix = Find(schema, "prefixItems");
    if (const json::value* unique = Find(schema, "uniqueItems");
        unique != nullptr && *unique != json::value(false) && max > 1)
      return Unsupported("'uniqueItems' is not supported");
    if (items != nullptr && items->is_array())
      return Unsupported("'items' as an array is not supported; it is 'prefixItems' now");
    if (min > max) return ast_.Nothing();
    if (prefix == nullptr && items == nullptr && min == 0 && max == kUnbounded)
      return parts_.Array();
    if (prefix != nullptr) return Tuple(*prefix, items, {min, max}, depth);
    const NodeId item = items != nullptr ? Schema(*items, depth + 1) : parts_.Value();
    return parts_.Brackets(Items(item, min, max));
  }

  // `min` to `max` of an item and what separates them.
  NodeId Items(NodeId item, std::uint64_t min, std::uint64_t max) {
    if (max == 0) return ast_.Empty();
    const NodeId next = ast_.Concat({parts_.Comma(), item});
    const auto copies = [](std::uint64_t count) {
      return count >= kUnbounded ? kUnbounded : static_cast<std::uint32_t>(count);
    };
    const NodeId some =
        ast_.Concat({item, ast_.Repeat(next, copies(min == 0 ? 0 : min - 1),
                                       max >= kUnbounded ? kUnbounded : copies(max - 1))});
    return min == 0 ? ast_.Optional(some) : some;
  }

  struct ItemCounts {
    std::uint64_t min = 0;
    std::uint64_t max = 0;
  };

  // An item can be there only behind those before it, so each holds the optional ones behind.
  NodeId Tuple(const json::value& prefix, const json::value* items, ItemCounts counts,
               std::uint32_t depth) {
    if (!prefix.is_array()) return Invalid("prefixItems must be an array");
    const json::array& schemas = prefix.get_array();
    if (schemas.size() > kMaxPrefixItems) {
      return Fail({ErrorCode::kTooLarge,
                   "prefixItems has more than " + std::to_string(kMaxPrefixItems) + " schemas"});
    }
    const std::size_t num_used = std::min<std::uint64_t>(schemas.size(), counts.max);
    NodeId rest = ast_.Empty();
    if (counts.max > schemas.size() &&
        (items == nullptr || *items != json::value(false) || counts.min > schemas.size())) {
      const NodeId item = items != nullptr ? Schema(*items, depth + 1) : parts_.Value();
      const NodeId next = num_used == 0 ? kNoNode : ast_.Concat({parts_.Comma(), item});
      const std::uint64_t more_min = counts.min > schemas.size() ? counts.min - schemas.size() : 0;
      const std::uint64_t more_max =
          counts.max >= kUnbounded ? kUnbounded : counts.max - schemas.size();
      rest = next == kNoNode ? Items(item, counts.min, counts.max)
                             : ast_.Repeat(next,
                                           static_cast<std::uint32_t>(
                                               std::min<std::uint64_t>(more_min, kUnbounded - 1)),
                                           static_cast<std::uint32_t>(more_max));
    }
    for (std::size_t i = num_used; i-- > 0;) {
      const NodeId item = Schema(schemas[i], depth + 1);
      const NodeId with_comma = i == 0 ? item : ast_.Concat({parts_.Comma(), item});
      const NodeId here = ast_.Concat({with_comma, rest});
      rest = i < counts.min ? here : ast_.Optional(here);
    }
    return parts_.Brackets(rest);
  }

  const json::value& root_;
  Ast& ast_;
  JsonParts parts_;
  SchemaMerger merger_;
  std::map<std::string, RuleId> references_;
  std::vector<std::pair<RuleId, const json::value*>> pending_;
  std::uint32_t num_nodes_ = 0;
  bool failed_ = false;
  Error error_;
};

}  // namespace

Status ParseJsonSchema(std::string_view text, Ast& ast) {
  if (text.size() > kMaxSchemaBytes) {
    return Error{ErrorCode::kTooLarge, "json_schema: it has " + std::to_string(text.size()) +
                                           " bytes; the limit is " +
                                           std::to_string(kMaxSchemaBytes)};
  }
  const Result<json::value> root =
      ParseJson(text, {.max_bytes = kMaxSchemaBytes, .max_depth = kMaxJsonDepth});
  if (!root) return Error{root.error().code, "json_schema: " + root.error().message};
  return Compiler(root.value(), ast).Run();
}

void DefineJsonObject(Ast& ast) {
  JsonParts parts(ast);
  ast.root = ast.AddRule("root");
  ast.Define(ast.root, parts.Object());
}

}  // namespace kvrm::grammar
