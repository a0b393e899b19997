// SPDX-License-Identifier: Apache-2.0
#include "grammar/determinize.h"

#include <algorithm>
#include <bitset>
#include <span>
#include <unordered_map>

#include "base/rng.h"

namespace kvrm::grammar {
namespace {

using Subset = std::vector<std::uint32_t>;

struct SubsetHash {
  std::size_t operator()(const Subset& subset) const {
    std::uint64_t hash = subset.size();
    for (const std::uint32_t state : subset)
      hash = Mix64(hash ^ state);
    return static_cast<std::size_t>(hash);
  }
};

class Construction {
 public:
  Construction(const Nfa& nfa, std::uint32_t max_states, Budget& budget,
               std::vector<DfaState>& states)
      : nfa_(nfa), max_states_(max_states), budget_(budget), states_(states) {
    seen_.assign(nfa.num_states, 0);
  }

  void Run() {
    Subset start = {nfa_.start};
    Find(start);
    while (!todo_.empty() && budget_.ok() && states_.size() <= max_states_) {
      const auto [id, subset] = todo_.back();
      todo_.pop_back();
      Expand(id, *subset);
    }
  }

 private:
  std::span<const NfaEdge> EdgesOf(std::uint32_t state) const {
    const std::uint32_t first = nfa_.first_edge[state];
    return std::span(nfa_.edges).subspan(first, nfa_.first_edge[state + 1] - first);
  }

  // What follows from `subset` without reading, without states from which nothing is read.
  void Close(Subset& subset) {
    ++stamp_;
    Subset todo;
    for (const std::uint32_t state : subset)
      if (seen_[state] != stamp_) seen_[state] = stamp_, todo.push_back(state);
    subset.clear();
    while (!todo.empty()) {
      const std::uint32_t state = todo.back();
      todo.pop_back();
      bool matters = state == nfa_.final;
      for (const NfaEdge& edge : EdgesOf(state)) {
        if (edge.kind != NfaEdge::Kind::kNothing) {
          matters = true;
        } else if (seen_[edge.to] != stamp_) {
          seen_[edge.to] = stamp_;
          todo.push_back(edge.to);
        }
      }
      budget_.Spend(1 + EdgesOf(state).size());
      if (matters) subset.push_back(state);
    }
    std::sort(subset.begin(), subset.end());
  }

  std::uint32_t Find(Subset& subset) {
    Close(subset);
    const auto [slot, is_new] =
        ids_.try_emplace(std::move(subset), static_cast<std::uint32_t>(states_.size()));
    if (is_new) {
      budget_.Spend(8, sizeof(DfaState) + slot->first.size() * sizeof(std::uint32_t) + 96);
      states_.emplace_back();
      states_.back().is_final =
          std::binary_search(slot->first.begin(), slot->first.end(), nfa_.final);
      todo_.emplace_back(slot->second, &slot->first);
    }
    return slot->second;
  }

  void Expand(std::uint32_t id, const Subset& subset) {
    bytes_.clear();
    calls_.clear();
    for (const std::uint32_t state : subset) {
      for (const NfaEdge& edge : EdgesOf(state)) {
        if (edge.kind == NfaEdge::Kind::kBytes) bytes_.push_back(&edge);
        if (edge.kind == NfaEdge::Kind::kCall) calls_.push_back(&edge);
      }
    }
    ExpandBytes(id);
    ExpandCalls(id);
    budget_.Spend(0, states_[id].edges.size() * sizeof(DfaState::Edge) +
                         states_[id].calls.size() * sizeof(DfaState::Call));
  }

  void ExpandBytes(std::uint32_t id) {
    std::bitset<257> begins;
    for (const NfaEdge* edge : bytes_) {
      begins.set(edge->low);
      begins.set(edge->high + 1u);
    }
    std::sort(bytes_.begin(), bytes_.end(),
              [](const NfaEdge* a, const NfaEdge* b) { return a->low < b->low; });
    std::vector<const NfaEdge*> open;
    std::size_t next = 0;
    for (std::size_t low = 0; low < 256;) {
      std::size_t end = low + 1;
      while (end < 256 && !begins[end])
        ++end;
      while (next < bytes_.size() && bytes_[next]->low <= low)
        open.push_back(bytes_[next++]);
      std::erase_if(open, [&](const NfaEdge* edge) { return edge->high < low; });
      budget_.Spend(1 + open.size());
      if (!open.empty() && budget_.ok()) {
        Subset targets;
        for (const NfaEdge* edge : open)
          targets.push_back(edge->to);
        AddEdge(id, low, end - 1, Find(targets));
      }
      low = end;
    }
  }

  void AddEdge(std::uint32_t id, std::size_t low, std::size_t high, std::uint32_t to) {
    std::vector<DfaState::Edge>& edges = states_[id].edges;
    if (!edges.empty() && edges.back().to == to && edges.back().high + 1u == low) {
      edges.back().high = static_cast<std::uint8_t>(high);
      return;
    }
    edges.push_back(
        {.low = static_cast<std::uint8_t>(low), .high = static_cast<std::uint8_t>(high), .to = to});
  }

  void ExpandCalls(std::uint32_t id) {
    std::sort(calls_.begin(), calls_.end(),
              [](const NfaEdge* a, const NfaEdge* b) { return a->rule < b->rule; });
    for (std::size_t i = 0; i < calls_.size() && budget_.ok();) {
      const RuleId rule = calls_[i]->rule;
      Subset targets;
      for (; i < calls_.size() && calls_[i]->rule == rule; ++i)
        targets.push_back(calls_[i]->to);
      const std::uint32_t to = Find(targets);
      states_[id].calls.push_back({.rule = rule, .to = to});
    }
  }

  const Nfa& nfa_;
  const std::uint32_t max_states_;
  Budget& budget_;
  std::vector<DfaState>& states_;
  std::unordered_map<Subset, std::uint32_t, SubsetHash> ids_;  // its keys do not move
  std::vector<std::pair<std::uint32_t, const Subset*>> todo_;
  std::vector<std::uint32_t> seen_;
  std::uint32_t stamp_ = 0;
  std::vector<const NfaEdge*> bytes_, calls_;
};

}  // namespace

void Determinize(const Nfa& nfa, std::uint32_t max_states, Budget& budget,
                 std::vector<DfaState>& states) {
  Construction(nfa, max_states, budget, states).Run();
}

}  // namespace kvrm::grammar
