// SPDX-License-Identifier: Apache-2.0
#include "grammar/automaton.h"

#include <algorithm>
#include <bitset>
#include <string>

#include "grammar/determinize.h"
#include "grammar/lower.h"
#include "grammar/nfa.h"

namespace kvrm::grammar {
namespace {

constexpr std::uint32_t kNotReached = 0xFFFFFFFFu;
// States with few edges keep them as they are, others get a row by classes of bytes.
constexpr std::size_t kMaxEdges = 4;
constexpr std::uint32_t kWideBytes = 32;

}  // namespace

std::uint32_t ByteGroup(std::uint8_t byte) {
  if (byte >= 0x80) return 0;
  if (byte >= '0' && byte <= '9') return 1;
  if (byte >= 'a' && byte <= 'z') return 2;
  if (byte >= 'A' && byte <= 'Z') return 3;
  switch (byte) {
    case ' ':
      return 4;
    case '"':
      return 5;
    case '\\':
      return 6;
    case '\n':
      return 7;
    case '\t':
      return 8;
    case '\r':
      return 9;
    case '\'':
      return 10;
    case '<':
      return 11;
    case '>':
      return 12;
    case '{':
      return 13;
    case '}':
      return 14;
    case '[':
      return 15;
    case ']':
      return 16;
    case '(':
      return 17;
    case ')':
      return 18;
    case ',':
      return 19;
    case '.':
      return 20;
    case '-':
      return 21;
    case '_':
      return 22;
    case '/':
      return 23;
    case ':':
      return 24;
    case '*':
      return 25;
    case '`':
      return 26;
    case 0x7F:
      return 27;
    default:
      return byte < 0x20 ? 28 : 29;
  }
}

std::size_t Automaton::bytes() const noexcept {
  return sizeof(*this) + states_.capacity() * sizeof(State) + edges_.capacity() * sizeof(Edge) +
         calls_.capacity() * sizeof(Call) + rows_.capacity() * sizeof(StateId);
}

class AutomatonBuilder {
 public:
  AutomatonBuilder(Ast ast, std::uint32_t max_states, Budget& budget)
      : ast_(std::move(ast)), max_states_(max_states), budget_(budget) {}

  Result<Automaton> Run() {
    Result<Lowered> lowered = Lower(ast_, budget_);
    if (!lowered) return lowered.error();
    if (const Status built = BuildRules(*lowered); !built) return built.error();
    FindPredecessors();
    FindNullable();
    if (const Status checked = CheckLeftRecursion(); !checked) return checked.error();
    FindNeeds();
    const std::uint32_t need = needs_[start_of_[ast_.root]];
    if (need == kNotReached) {
      return Error{ErrorCode::kInvalidArgument,
                   "no text matches the grammar: rule '" + Name(ast_.root) + "' cannot end"};
    }
    if (need > kMaxDepth / 2) {
      return Error{ErrorCode::kTooLarge, "the grammar needs " + std::to_string(need) +
                                             " levels of nesting; the limit is " +
                                             std::to_string(kMaxDepth / 2)};
    }
    Pack();
    if (!budget_.ok()) return budget_.TooLarge();
    return std::move(out_);
  }

 private:
  std::string Name(RuleId rule) const {
    const std::string& name = ast_.rules()[rule].name;
    return name.empty() ? "(a part of a repetition)" : name.substr(0, 64);
  }

  // Automata of the root and of what it calls.
  Status BuildRules(const Lowered& lowered) {
    start_of_.assign(ast_.rules().size(), kNotReached);
    std::vector<RuleId> todo = {ast_.root};
    while (!todo.empty()) {
      const RuleId rule = todo.back();
      todo.pop_back();
      if (start_of_[rule] != kNotReached) continue;
      const std::size_t first = states_.size();
      start_of_[rule] = static_cast<std::uint32_t>(first);
      const std::uint64_t held = budget_.bytes();
      const Nfa nfa = BuildNfa(ast_, lowered, rule, budget_);
      const std::uint64_t of_nfa = budget_.bytes() - held;
      if (budget_.ok()) Determinize(nfa, max_states_, budget_, states_);
      if (!budget_.ok()) return budget_.TooLarge();
      if (states_.size() > max_states_) {
        return Error{ErrorCode::kTooLarge,
                     "the grammar has more than " + std::to_string(max_states_) + " states"};
      }
      budget_.GiveBack(of_nfa);
      for (std::size_t s = first; s < states_.size(); ++s) {
        rule_of_.push_back(rule);
        for (const DfaState::Call& call : states_[s].calls)
          todo.push_back(call.rule);
      }
    }
    return Done{};
  }

  // Of each state: the states with an edge to it, and the calls that come back to it; of each rule:
  // the calls of it.
  struct CallAt {
    std::uint32_t state = 0;
    std::uint32_t call = 0;
  };

  void FindPredecessors() {
    edges_to_.resize(states_.size());
    calls_to_.resize(states_.size());
    calls_of_.resize(ast_.rules().size());
    std::uint64_t count = 0;
    for (std::uint32_t s = 0; s < states_.size(); ++s) {
      for (const DfaState::Edge& edge : states_[s].edges)
        edges_to_[edge.to].push_back(s);
      for (std::uint32_t c = 0; c < states_[s].calls.size(); ++c) {
        calls_to_[states_[s].calls[c].to].push_back({s, c});
        calls_of_[states_[s].calls[c].rule].push_back({s, c});
      }
      count += states_[s].edges.size() + 2 * states_[s].calls.size() + 1;
    }
    budget_.Spend(count, 16 * count + 48 * states_.size());
  }

  void FindNullable() {
    nullable_.assign(states_.size(), false);
    std::vector<std::uint32_t> todo;
    const auto mark = [&](std::uint32_t s) {
      if (!nullable_[s]) nullable_[s] = true, todo.push_back(s);
    };
    const auto try_call = [&](const CallAt& at) {
      const DfaState::Call& call = states_[at.state].calls[at.call];
      if (nullable_[call.to] && nullable_[start_of_[call.rule]]) mark(at.state);
    };
    for (std::uint32_t s = 0; s < states_.size(); ++s)
      if (states_[s].is_final) mark(s);
    while (!todo.empty()) {
      const std::uint32_t s = todo.back();
      todo.pop_back();
      for (const CallAt& at : calls_to_[s])
        try_call(at);
      if (start_of_[rule_of_[s]] != s) continue;
      for (const CallAt& at : calls_of_[rule_of_[s]])
        try_call(at);
    }
  }

  // Rules that `rule` can call before it has read a byte.
  std::vector<RuleId> FirstCalls(RuleId rule) {
    std::vector<RuleId> callees;
    std::vector<std::uint32_t> seen = {start_of_[rule]};
    for (std::size_t i = 0; i < seen.size(); ++i) {
      for (const DfaState::Call& call : states_[seen[i]].calls) {
        budget_.Spend(1 + seen.size());
        callees.push_back(call.rule);
        if (nullable_[start_of_[call.rule]] &&
            std::find(seen.begin(), seen.end(), call.to) == seen.end() && budget_.ok())
          seen.push_back(call.to);
      }
    }
    return callees;
  }

  Status CheckLeftRecursion() {
    enum : std::uint8_t { kNew, kOpen, kClosed };
    std::vector<std::uint8_t> mark(ast_.rules().size(), kNew);
    struct Step {
      RuleId rule;
      std::vector<RuleId> callees;
    };
    std::vector<Step> path;
    for (RuleId first = 0; first < mark.size(); ++first) {
      if (start_of_[first] == kNotReached || mark[first] != kNew) continue;
      mark[first] = kOpen;
      path.push_back({first, FirstCalls(first)});
      while (!path.empty()) {
        if (path.back().callees.empty()) {
          mark[path.back().rule] = kClosed;
          path.pop_back();
          continue;
        }
        const RuleId callee = path.back().callees.back();
        path.back().callees.pop_back();
        if (mark[callee] == kOpen) {
          return Error{ErrorCode::kInvalidArgument, "rule '" + Name(callee) +
                                                        "' calls itself before it matches anything "
                                                        "(left recursion)"};
        }
        if (mark[callee] != kNew) continue;
        mark[callee] = kOpen;
        path.push_back({callee, FirstCalls(callee)});
      }
    }
    return Done{};
  }

  // Dijkstra's order, by need: a state's is final when it is taken out of its bucket (Knuth 1977).
  void FindNeeds() {
    needs_.assign(states_.size(), kNotReached);
    std::vector<std::vector<std::uint32_t>> buckets(1);
    const auto offer = [&](std::uint32_t s, std::uint32_t need) {
      if (needs_[s] <= need) return;
      needs_[s] = need;
      if (buckets.size() <= need) buckets.resize(need + 1);
      buckets[need].push_back(s);
    };
    const auto try_call = [&](const CallAt& at) {
      const DfaState::Call& call = states_[at.state].calls[at.call];
      const std::uint32_t inside = needs_[start_of_[call.rule]];
      const std::uint32_t after = needs_[call.to];
      if (inside == kNotReached || after == kNotReached) return;
      offer(at.state, std::max(inside + (IsTail(call.to) ? 0 : 1), after));
    };
    for (std::uint32_t s = 0; s < states_.size(); ++s)
      if (states_[s].is_final) offer(s, 0);
    for (std::uint32_t need = 0; need < buckets.size(); ++need) {
      while (!buckets[need].empty()) {
        const std::uint32_t s = buckets[need].back();
        buckets[need].pop_back();
        if (needs_[s] != need) continue;
        for (const std::uint32_t from : edges_to_[s])
          offer(from, need);
        for (const CallAt& at : calls_to_[s])
          try_call(at);
        if (start_of_[rule_of_[s]] != s) continue;
        for (const CallAt& at : calls_of_[rule_of_[s]])
          try_call(at);
      }
    }
  }

  // Nothing is left to do behind a call that comes back here.
  bool IsTail(std::uint32_t s) const {
    return states_[s].is_final && states_[s].edges.empty() && states_[s].calls.empty();
  }

  bool IsAlive(std::uint32_t s) const { return needs_[s] <= kMaxDepth; }

  void Pack() {
    FindClasses();
    std::vector<StateId> ids(states_.size(), kDead);
    StateId next = kDone + 1;
    for (std::uint32_t s = 0; s < states_.size(); ++s)
      if (IsAlive(s)) ids[s] = next++;
    out_.states_.resize(next);
    for (std::uint32_t s = 0; s < states_.size() && budget_.ok(); ++s) {
      if (ids[s] == kDead) continue;
      PackEdges(s, ids);
      PackCalls(s, ids);
      Automaton::State& state = out_.states_[ids[s]];
      state.need = static_cast<std::uint8_t>(needs_[s]);
      state.is_final = states_[s].is_final;
      state.is_plain = !state.is_final && state.num_calls == 0;
      budget_.Spend(2, sizeof(state));
    }
    out_.start_ = ids[start_of_[ast_.root]];
  }

  void FindClasses() {
    std::bitset<257> begins;
    for (const DfaState& state : states_) {
      for (const DfaState::Edge& edge : state.edges) {
        begins.set(edge.low);
        begins.set(edge.high + 1u);
      }
    }
    std::uint8_t number = 0;
    for (std::size_t byte = 0; byte < 256; ++byte) {
      if (byte > 0 && begins[byte]) ++number;
      out_.classes_[byte] = number;
    }
    out_.num_classes_ = number + 1u;
  }

  void PackEdges(std::uint32_t s, const std::vector<StateId>& ids) {
    Automaton::State& state = out_.states_[ids[s]];
    std::vector<Automaton::Edge> edges;
    std::uint32_t num_bytes = 0;
    std::uint32_t leaves = 0;
    std::bitset<256> to_itself;
    for (const DfaState::Edge& edge : states_[s].edges) {
      if (ids[edge.to] == kDead) continue;
      edges.push_back({.target = ids[edge.to], .low = edge.low, .high = edge.high});
      num_bytes += edge.high - edge.low + 1u;
      for (std::size_t byte = edge.low; edge.to == s && byte <= edge.high; ++byte)
        to_itself.set(byte);
    }
    for (std::size_t byte = 0; byte < 256; ++byte)
      if (!to_itself[byte]) leaves |= 1u << ByteGroup(static_cast<std::uint8_t>(byte));
    state.stays = ~leaves;
    state.is_wide = num_bytes >= kWideBytes;
    if (edges.size() <= kMaxEdges) {
      state.first_edge = static_cast<std::uint32_t>(out_.edges_.size());
      state.num_edges = static_cast<std::uint8_t>(edges.size());
      out_.edges_.insert(out_.edges_.end(), edges.begin(), edges.end());
      budget_.Spend(edges.size(), edges.size() * sizeof(edges[0]));
      return;
    }
    const std::size_t first = out_.rows_.size();
    state.first_edge = static_cast<std::uint32_t>(first / out_.num_classes_);
    state.num_edges = Automaton::kRow;
    out_.rows_.resize(first + out_.num_classes_, kDead);
    for (const Automaton::Edge& edge : edges) {
      for (std::size_t byte = edge.low; byte <= edge.high; ++byte)
        out_.rows_[first + out_.classes_[byte]] = edge.target;
    }
    budget_.Spend(out_.num_classes_, 2 * out_.num_classes_ * sizeof(StateId));
  }

  void PackCalls(std::uint32_t s, const std::vector<StateId>& ids) {
    Automaton::State& state = out_.states_[ids[s]];
    state.first_call = static_cast<std::uint32_t>(out_.calls_.size());
    for (const DfaState::Call& call : states_[s].calls) {
      const StateId start = ids[start_of_[call.rule]];
      if (start == kDead || ids[call.to] == kDead) continue;
      out_.calls_.push_back({.start = start, .back = IsTail(call.to) ? kDead : ids[call.to]});
      ++state.num_calls;
    }
    budget_.Spend(state.num_calls, state.num_calls * sizeof(Automaton::Call));
  }

  Ast ast_;
  const std::uint32_t max_states_;
  Budget& budget_;
  std::vector<DfaState> states_;
  std::vector<RuleId> rule_of_;
  std::vector<std::uint32_t> start_of_;  // by rule; kNotReached: not called
  std::vector<std::vector<std::uint32_t>> edges_to_;
  std::vector<std::vector<CallAt>> calls_to_, calls_of_;
  std::vector<bool> nullable_;
  std::vector<std::uint32_t> needs_;
  Automaton out_;
};

Result<Automaton> BuildAutomaton(Ast ast, std::uint32_t max_states, Budget& budget) {
  return AutomatonBuilder(std::move(ast), max_states, budget).Run();
}

}  // namespace kvrm::grammar
