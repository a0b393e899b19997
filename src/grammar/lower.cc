// SPDX-License-Identifier: Apache-2.0
#include "grammar/lower.h"

#include <algorithm>

namespace kvrm::grammar {
namespace {

// A string of JSON has 17 states, a number about 60.
constexpr std::uint32_t kMaxInlined = 48;
constexpr std::uint32_t kMaxPlainRepeat = 256;
constexpr std::uint32_t kStretch = 64;
constexpr std::uint32_t kHuge = 1u << 30;

struct Shape {
  std::uint32_t size = 0;  // about how many states; 0: not known yet
  bool is_flat = true;     // no calls are left
  bool is_wide = false;    // has a class of many characters
  bool repeats = false;
  bool ends_open = false;  // its end may be such a class, repeated
};

std::uint32_t Sum(std::uint64_t a, std::uint64_t b) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(a + b, kHuge));
}
std::uint32_t Product(std::uint64_t a, std::uint64_t b) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(a * b, kHuge));
}

void Join(Shape& to, const Shape& from) {
  to.size = Sum(to.size, from.size);
  to.is_flat = to.is_flat && from.is_flat;
  to.is_wide = to.is_wide || from.is_wide;
  to.repeats = to.repeats || from.repeats;
  to.ends_open = to.ends_open || from.ends_open;
}

// Rules in an order in which callees come first, and which of them call themselves (Tarjan 1972,
// without recursion: chains of rules are as long as the text allows).
class CallOrder {
 public:
  CallOrder(const Ast& ast, Budget& budget) : ast_(ast), budget_(budget) {
    const std::size_t num_rules = ast.rules().size();
    seen_.assign(ast.num_nodes(), 0);
    calls_.resize(num_rules);
    number_.assign(num_rules, 0);
    low_.assign(num_rules, 0);
    on_stack_.assign(num_rules, false);
    recursive.assign(num_rules, false);
    for (RuleId rule = 0; rule < num_rules; ++rule)
      CollectCalls(rule);
    for (RuleId rule = 0; rule < num_rules; ++rule) {
      if (number_[rule] == 0) Visit(rule);
    }
  }

  std::vector<RuleId> order;
  std::vector<bool> recursive;

 private:
  void CollectCalls(RuleId rule) {
    std::vector<NodeId> todo = {ast_.rules()[rule].root};
    while (!todo.empty() && budget_.Spend(1)) {
      const NodeId id = todo.back();
      todo.pop_back();
      if (id == kNoNode || seen_[id] == rule + 1) continue;
      seen_[id] = rule + 1;
      const Node& node = ast_.node(id);
      if (node.kind == NodeKind::kCall) calls_[rule].push_back(node.rule);
      todo.insert(todo.end(), node.kids.begin(), node.kids.end());
    }
  }

  void Enter(RuleId rule) {
    number_[rule] = low_[rule] = ++count_;
    stack_.push_back(rule);
    on_stack_[rule] = true;
    path_.push_back({rule, 0});
  }

  void Visit(RuleId first) {
    Enter(first);
    while (!path_.empty()) {
      auto& [rule, next] = path_.back();
      if (next < calls_[rule].size()) {
        const RuleId callee = calls_[rule][next++];
        if (callee == rule) recursive[rule] = true;
        if (number_[callee] == 0) {
          Enter(callee);
        } else if (on_stack_[callee]) {
          low_[rule] = std::min(low_[rule], number_[callee]);
        }
        continue;
      }
      const RuleId done = rule;
      path_.pop_back();
      if (!path_.empty()) low_[path_.back().rule] = std::min(low_[path_.back().rule], low_[done]);
      if (low_[done] == number_[done]) Leave(done);
    }
  }

  void Leave(RuleId first) {
    const bool alone = stack_.back() == first;
    for (bool more = true; more;) {
      const RuleId rule = stack_.back();
      stack_.pop_back();
      on_stack_[rule] = false;
      if (!alone) recursive[rule] = true;
      order.push_back(rule);
      more = rule != first;
    }
  }

  struct Step {
    RuleId rule = 0;
    std::size_t next = 0;
  };
  const Ast& ast_;
  Budget& budget_;
  std::vector<std::uint32_t> seen_;
  std::vector<std::vector<RuleId>> calls_;
  std::vector<std::uint32_t> number_, low_;
  std::vector<bool> on_stack_;
  std::vector<RuleId> stack_;
  std::vector<Step> path_;
  std::uint32_t count_ = 0;
};

class Lowering {
 public:
  Lowering(Ast& ast, Budget& budget) : ast_(ast), budget_(budget) {}

  Result<Lowered> Run() {
    const CallOrder calls(ast_, budget_);
    if (!budget_.ok()) return budget_.TooLarge();
    rules_.resize(ast_.rules().size());
    lowered_.assign(ast_.num_nodes(), kNoNode);
    shapes_.resize(ast_.num_nodes());
    for (const RuleId rule : calls.order) {
      if (ast_.rules()[rule].root == kNoNode) continue;
      is_recursive_ = calls.recursive[rule];
      const NodeId root = Visit(ast_.rules()[rule].root);
      ast_.Define(rule, root);
      rules_[rule] = ShapeOf(root);
      result_.is_inlined.resize(ast_.rules().size(), false);
      result_.is_inlined[rule] = CanInline(rule);
      if (too_many_ || ast_.overflowed() || !budget_.ok()) break;
    }
    if (too_many_) {
      return Error{ErrorCode::kTooLarge, "a grammar asks for more than " +
                                             std::to_string(kMaxCopies) +
                                             " of something that is no character"};
    }
    if (ast_.overflowed()) return Error{ErrorCode::kTooLarge, "the grammar has too many parts"};
    if (!budget_.ok()) return budget_.TooLarge();
    result_.is_inlined.resize(ast_.rules().size(), false);
    return std::move(result_);
  }

 private:
  bool CanInline(RuleId rule) const {
    const Shape& shape = rules_[rule];
    return !is_recursive_ && !ast_.rules()[rule].is_shared && shape.size <= kMaxInlined &&
           !(shape.is_wide && shape.repeats && !shape.ends_open);
  }

  bool IsInlined(RuleId rule) const {
    return rule < result_.is_inlined.size() && result_.is_inlined[rule];
  }

  const Shape& ShapeOf(NodeId id) const { return shapes_[id]; }

  NodeId Keep(NodeId from, NodeId to, const Shape& shape) {
    if (shapes_.size() < ast_.num_nodes()) {
      shapes_.resize(ast_.num_nodes());
      lowered_.resize(ast_.num_nodes(), kNoNode);
    }
    shapes_[to] = shape;
    lowered_[from] = to;
    lowered_[to] = to;
    return to;
  }

  NodeId Visit(NodeId id) {
    if (id < lowered_.size() && lowered_[id] != kNoNode) return lowered_[id];
    budget_.Spend(1);
    Node node = ast_.node(id);
    Shape shape = {.size = 1};
    bool changed = false;
    for (NodeId& kid : node.kids) {
      if (kid == kNoNode) continue;
      const NodeId lowered = Visit(kid);
      changed = changed || lowered != kid;
      kid = lowered;
      Join(shape, ShapeOf(kid));
    }
    switch (node.kind) {
      case NodeKind::kEmpty:
        break;
      case NodeKind::kLiteral:
        shape.size = Sum(node.text.size(), 0);
        break;
      case NodeKind::kClass:
        ClassShape(node, shape);
        break;
      case NodeKind::kOtherThan:
        ClassShape(node, shape);
        shape.repeats = true;
        for (const std::u32string& word : node.words)
          shape.size = Sum(shape.size, Product(word.size(), shape.size));
        break;
      case NodeKind::kCall:
        shape = {.size = 1, .is_flat = false};
        if (IsInlined(node.rule)) shape = rules_[node.rule], shape.size = Sum(shape.size, 1);
        break;
      case NodeKind::kList:
        shape.size = Sum(shape.size, Product(node.kids.size(), ShapeOf(node.kids[0]).size));
        break;
      case NodeKind::kRepeat:
        return Repeat(id, node);
      case NodeKind::kConcat:
        changed = true;
        shape.ends_open = ShapeOf(node.kids.back()).ends_open;
        break;
      case NodeKind::kAlternate:
        break;
    }
    return Keep(id, changed ? Rebuilt(node) : id, shape);
  }

  static void ClassShape(const Node& node, Shape& shape) {
    const auto& ranges = node.set.ranges();
    const bool is_ascii = ranges.empty() || ranges.back().last < 0x80;
    shape.size = is_ascii ? 1 : Sum(8, Product(2, ranges.size()));
    shape.is_wide = node.set.Count() >= 26;
  }

  NodeId Rebuilt(const Node& node) {
    if (node.kind == NodeKind::kConcat) return ast_.Concat(node.kids);
    if (node.kind == NodeKind::kAlternate) return ast_.Alternate(node.kids);
    if (node.kind == NodeKind::kRepeat) return ast_.Repeat(node.kids[0], node.min, node.max);
    const std::vector<NodeId> items(node.kids.begin() + 2, node.kids.end());
    return ast_.List(node.kids[0], node.kids[1], items, node.text);
  }

  NodeId Repeat(NodeId id, Node node) {
    const Shape kid = ShapeOf(node.kids[0]);
    const std::uint32_t copies = node.max == kUnbounded ? node.min : node.max;
    const bool is_small = Product(copies, kid.size) <= kMaxPlainRepeat;
    const bool is_character = kid.is_flat && kid.size <= kMaxInlined;
    if (!is_small && is_character && copies > kStretch) return InStretches(id, node, kid);
    if (!is_small && !is_character) {
      node.kids[0] = SharedCall(node.kids[0], kid);
      too_many_ = too_many_ || node.min > kMaxCopies;
      if (node.max != kUnbounded) node.max = std::min(node.max, kMaxCopies);
    }
    Shape shape = ShapeOf(node.kids[0]);
    shape.size = std::max(1u, Product(std::max(1u, copies), shape.size));
    shape.repeats = true;
    shape.ends_open = shape.is_wide;
    return Keep(id, Rebuilt(node), shape);
  }

  // A call of a rule of its own for `kid`.
  NodeId SharedCall(NodeId kid, const Shape& shape) {
    const Node& node = ast_.node(kid);
    if (node.kind == NodeKind::kCall && !IsInlined(node.rule)) return kid;
    const RuleId rule = ast_.AddRule("");
    ast_.Define(rule, kid);
    ast_.Share(rule);
    rules_.resize(ast_.rules().size());
    rules_[rule] = shape;
    const NodeId call = ast_.Call(rule);
    return Keep(call, call, {.size = 1, .is_flat = false});
  }

  // 64 at a time. The choice that ends among the first of a stretch and the one that goes through
  // it count the same characters, so at most two of them are open at once.
  NodeId InStretches(NodeId id, const Node& node, const Shape& kid_shape) {
    const NodeId kid = node.kids[0];
    const bool bounded = node.max != kUnbounded;
    const std::uint32_t more = bounded ? node.max - node.min : 0;
    NodeId stretch = kNoNode;
    if (std::max(node.min, more) >= kStretch) {
      stretch = SharedCall(ast_.Repeat(kid, kStretch, kStretch), kid_shape);
    }
    const auto stretches = [&](std::uint32_t min, std::uint32_t max) {
      too_many_ = too_many_ || min > kMaxCopies;
      return ast_.Repeat(stretch, min, std::min(max, kMaxCopies));
    };
    std::vector<NodeId> parts;
    if (node.min >= kStretch) parts.push_back(stretches(node.min / kStretch, node.min / kStretch));
    if (node.min % kStretch != 0)
      parts.push_back(ast_.Repeat(kid, node.min % kStretch, node.min % kStretch));
    if (!bounded) {
      parts.push_back(ast_.Repeat(kid, 0, kUnbounded));
    } else if (more < kStretch) {
      parts.push_back(ast_.Repeat(kid, 0, more));
    } else {
      const std::uint32_t whole = std::min(more / kStretch, kMaxCopies);
      const NodeId early =
          ast_.Concat({stretches(0, whole - 1), ast_.Repeat(kid, 0, kStretch - 1)});
      const NodeId late =
          ast_.Concat({stretches(whole, whole), ast_.Repeat(kid, 0, more % kStretch)});
      parts.push_back(ast_.Alternate({early, late}));
    }
    Shape shape = {.size = kMaxInlined + 1, .is_flat = false, .repeats = true};
    shape.is_wide = kid_shape.is_wide;
    return Keep(id, ast_.Concat(std::move(parts)), shape);
  }

  Ast& ast_;
  Budget& budget_;
  std::vector<Shape> rules_;     // by rule
  std::vector<Shape> shapes_;    // by lowered node
  std::vector<NodeId> lowered_;  // by node
  Lowered result_;
  bool is_recursive_ = false;
  bool too_many_ = false;
};

}  // namespace

Result<Lowered> Lower(Ast& ast, Budget& budget) {
  if (ast.overflowed()) return Error{ErrorCode::kTooLarge, "the grammar has too many parts"};
  return Lowering(ast, budget).Run();
}

}  // namespace kvrm::grammar
