// SPDX-License-Identifier: Apache-2.0
// The parser of the template language: tokens to a tree, within limits.
//
// The tree is a flat array of nodes that name each other by index, so that neither building nor
// destroying it recurses. Its depth is bounded where it is built, which is what bounds the
// evaluator's recursion. Immutable after parsing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvrm::jinja {

// reliability of an untrusted source: refused when larger, deeper or richer than this. Real chat
// templates stay below 20 KiB, 4,000 nodes and nesting 20.
constexpr std::size_t kMaxSourceBytes = 256u << 10;
constexpr std::size_t kMaxNodes = 20'000;
constexpr std::uint32_t kMaxNesting = 64;

using NodeId = std::uint32_t;
using NameId = std::uint32_t;
constexpr NodeId kNoNode = 0xFFFFFFFFu;

enum class NodeKind : std::uint8_t {
  // Expressions.
  kConstNone,
  kConstBool,    // integer
  kConstInt,     // integer
  kConstFloat,   // real
  kConstString,  // text
  kName,         // name
  kList,         // kids
  kTuple,        // kids
  kDict,         // kids: key, value, key, value
  kAttribute,    // a.text
  kItem,         // a[b]
  kSlice,        // a:b:c, each may be kNoNode; only as b of kItem
  kCall,         // a(arguments)
  kFilter,       // a | text(arguments); a is kNoNode in a filter block
  kTest,         // a is text(arguments)
  kCondition,    // a if b else c; c may be kNoNode
  kOr,           // a or b
  kAnd,          // a and b
  kNot,          // not a
  kNegate,       // -a
  kPositive,     // +a
  kBinary,       // a text b: + - * / // % **
  kConcat,       // kids joined by ~
  kCompare,      // a, then kids[i] with operators[i]
  // Statements.
  kData,         // text
  kPrint,        // a
  kBody,         // kids
  kIf,           // kids: test, body, test, body, ...; c: else body
  kFor,          // target a in b if c: kids[0] body, kids[1] else body or kNoNode
  kSet,          // a = b
  kSetBlock,     // a = rendered kids[0], through filter b or kNoNode
  kMacro,        // name, parameters, kids[0] body
  kCallBlock,    // a is the kCall; parameters of caller; kids[0] body
  kFilterBlock,  // a: filter chain; kids[0] body
  kWith,         // kids: target, value, ...; a body
  kScope,        // kids[0] in a scope of its own: {% generation %}
  kBreak,
  kContinue,
  // Targets.
  kNamespaceTarget,  // name.text
};

enum class Operator : std::uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kIn,
  kNotIn,
};

struct Argument {
  enum class Kind : std::uint8_t { kPositional, kKeyword, kStar, kStarStar };
  Kind kind = Kind::kPositional;
  std::string keyword;
  NodeId value = kNoNode;
};

struct Parameter {
  NameId name = 0;
  NodeId default_value = kNoNode;
};

struct Node {
  NodeKind kind = NodeKind::kConstNone;
  Operator op = Operator::kAdd;
  std::uint32_t line = 0;
  std::uint32_t depth = 1;  // Levels of evaluation below and including this node.
  NodeId a = kNoNode;
  NodeId b = kNoNode;
  NodeId c = kNoNode;
  NameId name = 0;
  // Macros and call blocks: which of the implicit names the body uses.
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
  std::int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<NodeId> kids;
  std::vector<Operator> operators;
  std::vector<Argument> arguments;
  std::vector<Parameter> parameters;
};

struct Tree {
  std::vector<Node> nodes;
  std::vector<std::string> names;  // by NameId
  NodeId root = kNoNode;

  const Node& at(NodeId id) const { return nodes[id]; }
};

// Names the parser interns first, so that the evaluator knows their ids.
enum WellKnownName : NameId { kNameLoop, kNameCaller, kNameVarargs, kNameKwargs, kNumWellKnown };

bool IsKnownFilter(std::string_view name);  // jinja_filters.cc
bool IsKnownTest(std::string_view name);

// Errors begin with "line N: " and name the construct.
Result<Tree> ParseTemplate(std::string_view source);

}  // namespace kvrm::jinja
