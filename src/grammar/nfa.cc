// SPDX-License-Identifier: Apache-2.0
#include "grammar/nfa.h"

#include <algorithm>
#include <map>

#include "base/utf8.h"

namespace kvrm::grammar {
namespace {

using Kind = NfaEdge::Kind;

class Builder {
 public:
  Builder(const Ast& ast, const Lowered& lowered, Budget& budget)
      : ast_(ast), lowered_(lowered), budget_(budget) {}

  Nfa Run(RuleId rule) {
    nfa_.start = NewState();
    nfa_.final = Build(ast_.rules()[rule].root, nfa_.start);
    nfa_.first_edge.assign(nfa_.num_states + 1, 0);
    for (const NfaEdge& edge : nfa_.edges)
      ++nfa_.first_edge[edge.from + 1];
    for (std::uint32_t s = 0; s < nfa_.num_states; ++s)
      nfa_.first_edge[s + 1] += nfa_.first_edge[s];
    std::stable_sort(nfa_.edges.begin(), nfa_.edges.end(),
                     [](const NfaEdge& a, const NfaEdge& b) { return a.from < b.from; });
    return std::move(nfa_);
  }

 private:
  std::uint32_t NewState() {
    budget_.Spend(1, sizeof(std::uint32_t));
    return nfa_.num_states++;
  }
  void Add(const NfaEdge& edge) {
    if (budget_.Spend(2, 2 * sizeof(NfaEdge))) nfa_.edges.push_back(edge);
  }
  void Link(std::uint32_t from, std::uint32_t to) { Add({.from = from, .to = to}); }
  void Bytes(std::uint32_t from, std::uint32_t to, std::uint8_t low, std::uint8_t high) {
    Add({.from = from, .to = to, .kind = Kind::kBytes, .low = low, .high = high});
  }

  // Adds the node's states behind `from`; returns where it ends.
  std::uint32_t Build(NodeId id, std::uint32_t from) {
    if (!budget_.ok()) return from;
    const Node& node = ast_.node(id);
    switch (node.kind) {
      case NodeKind::kEmpty:
        return from;
      case NodeKind::kLiteral:
        return Literal(node.text, from);
      case NodeKind::kClass:
        return Class(node.set, from, NewState());
      case NodeKind::kConcat:
        for (const NodeId kid : node.kids)
          from = Build(kid, from);
        return from;
      case NodeKind::kAlternate:
        return Alternate(node, from);
      case NodeKind::kRepeat:
        return Repeat(node, from);
      case NodeKind::kCall:
        return Call(node.rule, from);
      case NodeKind::kList:
        return List(node, from);
      case NodeKind::kOtherThan:
        return OtherThan(node, from);
    }
    return from;
  }

  std::uint32_t Literal(std::string_view text, std::uint32_t from) {
    for (const char c : text) {
      const std::uint32_t to = NewState();
      Bytes(from, to, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c));
      from = to;
    }
    return from;
  }

  std::uint32_t Class(const CodePointSet& set, std::uint32_t from, std::uint32_t to) {
    for (const CodePointRange& range : set.ranges()) {
      ForEachByteSequence(range, [&](const ByteSequence& sequence) {
        std::uint32_t at = from;
        for (std::uint8_t i = 0; i < sequence.size; ++i) {
          const std::uint32_t next = i + 1 == sequence.size ? to : NewState();
          Bytes(at, next, sequence.low[i], sequence.high[i]);
          at = next;
        }
      });
    }
    return to;
  }

  std::uint32_t Alternate(const Node& node, std::uint32_t from) {
    const std::uint32_t to = NewState();
    for (const NodeId kid : node.kids) {
      // A loop at the beginning of a kid must not lead into the others.
      const std::uint32_t start = NewState();
      Link(from, start);
      Link(Build(kid, start), to);
    }
    return to;
  }

  std::uint32_t Repeat(const Node& node, std::uint32_t from) {
    const NodeId kid = node.kids[0];
    for (std::uint32_t i = 0; i < node.min && budget_.ok(); ++i)
      from = Build(kid, from);
    const std::uint32_t to = NewState();
    if (node.max == kUnbounded) {
      const std::uint32_t loop = NewState();
      Link(from, loop);
      Link(Build(kid, loop), loop);
      Link(loop, to);
      return to;
    }
    for (std::uint32_t i = node.min; i < node.max && budget_.ok(); ++i) {
      Link(from, to);
      const std::uint32_t start = NewState();
      Link(from, start);
      from = Build(kid, start);
    }
    Link(from, to);
    return to;
  }

  std::uint32_t Call(RuleId rule, std::uint32_t from) {
    if (lowered_.is_inlined[rule]) return Build(ast_.rules()[rule].root, from);
    const std::uint32_t to = NewState();
    Add({.from = from, .to = to, .rule = rule, .kind = Kind::kCall});
    return to;
  }

  // `bare` is where no item has come yet, `behind` where one has: it needs a separator.
  std::uint32_t List(const Node& node, std::uint32_t from) {
    const NodeId separator = node.kids[0];
    const NodeId rest = node.kids[1];
    const auto next_item = [&](std::uint32_t bare, std::uint32_t behind) {
      const std::uint32_t start = NewState();
      Link(bare, start);
      Link(Build(separator, behind), start);
      return start;
    };
    std::uint32_t bare = from;
    std::uint32_t behind = NewState();
    for (std::size_t i = 2; i < node.kids.size() && budget_.ok(); ++i) {
      const std::uint32_t end = Build(node.kids[i], next_item(bare, behind));
      const std::uint32_t next_bare = NewState();
      const std::uint32_t next_behind = NewState();
      Link(end, next_behind);
      if (node.text[i - 2] != '1') {
        Link(bare, next_bare);
        Link(behind, next_behind);
      }
      bare = next_bare;
      behind = next_behind;
    }
    if (rest != kNoNode) {
      const std::uint32_t all_behind = NewState();
      Link(behind, all_behind);
      Link(Build(rest, next_item(bare, all_behind)), all_behind);
      behind = all_behind;
    }
    const std::uint32_t to = NewState();
    Link(bare, to);
    Link(behind, to);
    return to;
  }

  // A trie of the words: whoever leaves it, or stops where no word ends, is none of them.
  std::uint32_t OtherThan(const Node& node, std::uint32_t from) {
    struct Place {
      std::map<char32_t, std::size_t> next;
      bool ends_word = false;
    };
    std::vector<Place> places(1);
    for (const std::u32string& word : node.words) {
      std::size_t at = 0;
      for (const char32_t c : word) {
        if (!budget_.Spend(1, sizeof(Place))) return from;
        const auto [slot, is_new] = places[at].next.try_emplace(c, places.size());
        at = slot->second;
        if (is_new) places.emplace_back();
      }
      places[at].ends_word = true;
    }
    const std::uint32_t to = NewState();
    const std::uint32_t other = NewState();
    Class(node.set, other, other);
    Link(other, to);
    std::vector<std::uint32_t> states(places.size());
    for (std::uint32_t& state : states)
      state = NewState();
    Link(from, states[0]);
    for (std::size_t i = 0; i < places.size() && budget_.ok(); ++i) {
      CodePointSet left = node.set;
      for (const auto& [c, next] : places[i].next) {
        left.Remove(c, c);
        if (node.set.Contains(c)) Class(CodePointSet::Of(c, c), states[i], states[next]);
      }
      budget_.Spend(places[i].next.size() * left.ranges().size());
      Class(left, states[i], other);
      if (!places[i].ends_word) Link(states[i], to);
    }
    return to;
  }

  const Ast& ast_;
  const Lowered& lowered_;
  Budget& budget_;
  Nfa nfa_;
};

}  // namespace

Nfa BuildNfa(const Ast& ast, const Lowered& lowered, RuleId rule, Budget& budget) {
  return Builder(ast, lowered, budget).Run(rule);
}

}  // namespace kvrm::grammar
