// SPDX-License-Identifier: Apache-2.0
// JsonParts: the pieces of JSON that grammars for JSON are put together from.
//
// What may be between pieces is nothing, one space, or a new line and at most 20 spaces or tabs:
// room for any style, and no room for a model to go on with spaces for ever. Numbers have at most
// 15 digits before the point, so that every reader takes them for what they are.
//
// Threading: one thread; `ast` outlives it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "grammar/ast.h"

namespace kvrm::grammar {

// Bounds of a number; absent: none.
struct NumberBounds {
  std::optional<std::int64_t> low = {};
  std::optional<std::int64_t> high = {};
  bool excludes_low = false;
  bool excludes_high = false;
};

class JsonParts {
 public:
  explicit JsonParts(Ast& ast);

  NodeId Space() const { return space_; }
  NodeId String() { return ast_.Call(string_); }
  NodeId Integer() { return ast_.Call(integer_); }
  NodeId Number() { return ast_.Call(number_); }
  NodeId Boolean() { return ast_.Alternate({ast_.Literal("true"), ast_.Literal("false")}); }
  NodeId Null() { return ast_.Literal("null"); }
  NodeId Object() { return ast_.Call(object_); }
  NodeId Array() { return ast_.Call(array_); }
  NodeId Value() { return ast_.Call(value_); }

  NodeId StringOfLength(std::uint32_t min, std::uint32_t max);
  NodeId Quoted(NodeId content);
  // `"key": value`
  NodeId Member(NodeId key, NodeId value);
  NodeId Key(std::string_view key);
  // A key without escapes that is none of these.
  NodeId KeyOtherThan(std::vector<std::u32string> keys);
  NodeId Comma() { return ast_.Concat({ast_.Literal(","), space_}); }
  NodeId Braces(NodeId members);
  NodeId Brackets(NodeId items);

  // Nothing() where no such number exists. The bounds' own size is at most 10^15.
  NodeId IntegerWithin(const NumberBounds& bounds);
  NodeId NumberWithin(const NumberBounds& bounds);

  // The quoted string. kUnsupported names the format.
  Result<NodeId> Format(std::string_view format);

 private:
  void DefineString();
  void DefineNumbers();
  void DefineValues();
  NodeId Digit() { return ast_.Class(CodePointSet::Of('0', '9')); }
  NodeId Digits(std::uint32_t min, std::uint32_t max) { return ast_.Repeat(Digit(), min, max); }
  NodeId SameLength(std::string_view low, std::string_view high);
  NodeId AtLeast(std::string_view digits);
  NodeId AtMost(std::string_view digits);
  NodeId Natural(std::int64_t low, std::int64_t high);
  // A call of one rule for all that have this key.
  template <typename Make>
  NodeId Once(const std::string& key, const Make& make) {
    const auto [slot, is_new] = made_.try_emplace(key, RuleId{0});
    if (is_new) {
      slot->second = ast_.AddRule(key);
      ast_.Define(slot->second, make());
    }
    return ast_.Call(slot->second);
  }
  NodeId MakeInteger(const NumberBounds& bounds);
  NodeId MakeNumber(const NumberBounds& bounds);
  NodeId PositiveWithin(std::int64_t low, std::int64_t high, bool excludes_low, bool excludes_high);

  Ast& ast_;
  RuleId string_, integer_, number_, object_, array_, value_;
  NodeId space_ = kNoNode;
  NodeId char_ = kNoNode;
  std::map<std::string, RuleId> made_;
};

}  // namespace kvrm::grammar
