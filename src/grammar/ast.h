// SPDX-License-Identifier: Apache-2.0
// Ast: the one form that GBNF, JSON schemas and regular expressions are parsed into.
//
// Rules, each with a tree of nodes over text. Nodes name each other and rules by index; a node is
// made after its kids. The number of nodes is bounded: beyond it nodes are no longer made and
// overflowed() says so, which whoever compiles the tree must ask.
//
// Threading: one thread. Memory: at most about 12 MiB.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/code_points.h"

namespace kvrm::grammar {

using NodeId = std::uint32_t;
using RuleId = std::uint32_t;
constexpr NodeId kNoNode = 0xFFFFFFFFu;
constexpr std::uint32_t kUnbounded = 0xFFFFFFFFu;

enum class NodeKind : std::uint8_t {
  kEmpty,      // the empty text
  kLiteral,    // text, byte for byte
  kClass,      // one character of `set`; an empty set: nothing at all
  kConcat,     // kids one after the other
  kAlternate,  // one of the kids
  kRepeat,     // kids[0], min to max times
  kCall,       // rule
  // Kids[0] separates, kids[1] (or kNoNode) may be repeated at the end, the others come in their
  // order, each at most once; those that are not marked '1' in `text` may be left out. May be
  // empty.
  kList,
  // Any text of characters of `set` that is none of `words`.
  kOtherThan,
};

struct Node {
  NodeKind kind = NodeKind::kEmpty;
  std::uint32_t min = 0;
  std::uint32_t max = 0;
  RuleId rule = 0;
  std::vector<NodeId> kids = {};
  std::string text = {};
  CodePointSet set = {};
  std::vector<std::u32string> words = {};
};

struct Rule {
  std::string name;
  NodeId root = kNoNode;  // kNoNode: not defined
  bool is_shared =
      false;  // stays a rule of its own: what is known of its states serves all callers
};

class Ast {
 public:
  Ast();
  NodeId Empty() const { return 0; }
  NodeId Literal(std::string_view bytes);
  NodeId Class(CodePointSet set);
  NodeId Char(char32_t c) { return Class(CodePointSet::Of(c, c)); }
  NodeId Nothing() { return Class({}); }
  NodeId Concat(std::vector<NodeId> kids);
  NodeId Alternate(std::vector<NodeId> kids);
  NodeId Repeat(NodeId kid, std::uint32_t min, std::uint32_t max);
  NodeId Optional(NodeId kid) { return Repeat(kid, 0, 1); }
  NodeId Call(RuleId rule);
  // `required` has a '1' for each item that must be there.
  NodeId List(NodeId separator, NodeId rest, const std::vector<NodeId>& items,
              std::string required);
  NodeId OtherThan(CodePointSet set, std::vector<std::u32string> words);

  RuleId AddRule(std::string name);
  void Define(RuleId rule, NodeId body) { rules_[rule].root = body; }
  void Share(RuleId rule) { rules_[rule].is_shared = true; }

  const Node& node(NodeId id) const { return nodes_[id]; }
  const std::vector<Rule>& rules() const { return rules_; }
  std::uint32_t num_nodes() const { return static_cast<std::uint32_t>(nodes_.size()); }
  bool overflowed() const { return overflowed_; }
  RuleId root = 0;

 private:
  NodeId Add(Node node);

  std::deque<Node> nodes_;  // does not double
  std::vector<Rule> rules_;
  std::size_t extra_bytes_ = 0;
  bool overflowed_ = false;
};

}  // namespace kvrm::grammar
