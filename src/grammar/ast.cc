// SPDX-License-Identifier: Apache-2.0
#include "grammar/ast.h"

#include <utility>

namespace kvrm::grammar {
namespace {

// About one a byte of the longest schema; JSON values take 3 to 10 a schema.
constexpr std::size_t kMaxNodes = 60'000;
constexpr std::size_t kMaxExtraBytes = std::size_t{4} << 20;

std::size_t ExtraBytes(const Node& node) {
  std::size_t bytes = node.kids.size() * sizeof(NodeId) + node.text.size() +
                      node.set.ranges().size() * sizeof(CodePointRange);
  for (const std::u32string& word : node.words)
    bytes += sizeof(word) + word.size() * sizeof(char32_t);
  return bytes;
}

}  // namespace

Ast::Ast() {
  nodes_.emplace_back();
}

NodeId Ast::Add(Node node) {
  extra_bytes_ += ExtraBytes(node);
  if (nodes_.size() >= kMaxNodes || extra_bytes_ > kMaxExtraBytes) {
    overflowed_ = true;
    return Empty();
  }
  nodes_.push_back(std::move(node));
  return static_cast<NodeId>(nodes_.size() - 1);
}

NodeId Ast::Literal(std::string_view bytes) {
  if (bytes.empty()) return Empty();
  return Add({.kind = NodeKind::kLiteral, .text = std::string(bytes)});
}

NodeId Ast::Class(CodePointSet set) {
  return Add({.kind = NodeKind::kClass, .set = std::move(set)});
}

NodeId Ast::Concat(std::vector<NodeId> kids) {
  if (kids.empty()) return Empty();
  if (kids.size() == 1) return kids[0];
  return Add({.kind = NodeKind::kConcat, .kids = std::move(kids)});
}

NodeId Ast::Alternate(std::vector<NodeId> kids) {
  if (kids.empty()) return Nothing();
  if (kids.size() == 1) return kids[0];
  return Add({.kind = NodeKind::kAlternate, .kids = std::move(kids)});
}

NodeId Ast::Repeat(NodeId kid, std::uint32_t min, std::uint32_t max) {
  if (max == 0) return Empty();
  if (min == 1 && max == 1) return kid;
  return Add({.kind = NodeKind::kRepeat, .min = min, .max = max, .kids = {kid}});
}

NodeId Ast::Call(RuleId rule) {
  return Add({.kind = NodeKind::kCall, .rule = rule});
}

NodeId Ast::List(NodeId separator, NodeId rest, const std::vector<NodeId>& items,
                 std::string required) {
  std::vector<NodeId> kids = {separator, rest};
  kids.insert(kids.end(), items.begin(), items.end());
  return Add({.kind = NodeKind::kList, .kids = std::move(kids), .text = std::move(required)});
}

NodeId Ast::OtherThan(CodePointSet set, std::vector<std::u32string> words) {
  return Add({.kind = NodeKind::kOtherThan, .set = std::move(set), .words = std::move(words)});
}

RuleId Ast::AddRule(std::string name) {
  rules_.push_back({.name = std::move(name)});
  return static_cast<RuleId>(rules_.size() - 1);
}

}  // namespace kvrm::grammar
