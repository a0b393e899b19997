// SPDX-License-Identifier: Apache-2.0
// Automaton: a grammar as deterministic automata over bytes, one a rule, that call each other.
//
// What has been read so far is a set of configurations (matcher.h), each a state and a stack of
// states to return to. Within a rule there is one next state a byte; more than one configuration
// comes only from calls that begin alike.
//
// Invariants:
//   A1  every state has a way to an end: dead ones are left out.
//   A2  no rule calls itself before it has read a byte (no left recursion), so that following calls
//       ends.
//   A3  need(s) is the least number of returns a way from s to the end of its rule has on the stack
//       at once. Whoever keeps depth + need within the limit can always finish.
//
// Immutable once built. Memory: bytes().
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "grammar/ast.h"
#include "grammar/budget.h"

namespace kvrm::grammar {

using StateId = std::uint32_t;
constexpr StateId kDead = 0xFFFFFFFFu;
// Where a text that is complete stands: nothing leads on.
constexpr StateId kDone = 0;
constexpr std::uint32_t kMaxStates = 65536;
constexpr std::uint32_t kMaxDepth = 250;  // of the stack

// Which of 32 groups a byte is in; a state's `stays` has the groups all of whose bytes lead back to
// itself, so that tokens made of these are allowed without a look at each byte.
std::uint32_t ByteGroup(std::uint8_t byte);

class Automaton {
 public:
  struct Edge {
    StateId target = kDead;
    std::uint8_t low = 0;
    std::uint8_t high = 0;  // inclusive
  };
  struct Call {
    StateId start = kDead;
    StateId back = kDead;  // kDead: nothing is left to do in this rule, so nothing is pushed
  };
  struct State {
    std::uint32_t first_edge = 0;  // or the row, where num_edges is kRow
    std::uint32_t first_call = 0;
    std::uint32_t stays = 0;
    std::uint16_t num_calls = 0;
    std::uint8_t num_edges = 0;
    std::uint8_t need = 0;
    bool is_final = false;
    bool is_plain = false;  // neither final nor with calls
    bool is_wide = false;   // many bytes lead on
  };

  StateId Next(StateId s, std::uint8_t byte) const noexcept {
    const State& state = states_[s];
    if (state.num_edges == kRow)
      return rows_[std::size_t{state.first_edge} * num_classes_ + classes_[byte]];
    for (std::uint32_t i = 0; i < state.num_edges; ++i) {
      const Edge& edge = edges_[state.first_edge + i];
      if (edge.low <= byte && byte <= edge.high) return edge.target;
    }
    return kDead;
  }
  const State& state(StateId s) const noexcept { return states_[s]; }
  const Call* calls(StateId s) const noexcept { return calls_.data() + states_[s].first_call; }
  StateId start() const noexcept { return start_; }
  std::uint32_t num_states() const noexcept { return static_cast<std::uint32_t>(states_.size()); }
  std::size_t bytes() const noexcept;

 private:
  friend class AutomatonBuilder;
  static constexpr std::uint8_t kRow = 255;

  StateId start_ = kDead;
  std::uint32_t num_classes_ = 1;
  std::array<std::uint8_t, 256> classes_{};
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<Call> calls_;
  std::vector<StateId> rows_;  // [rows][num_classes]
};

// Lowers, determinizes and checks. `max_states`: of all rules together. Errors: kTooLarge (budget,
// states, depth), kInvalidArgument (left recursion, a rule that cannot end; by name).
Result<Automaton> BuildAutomaton(Ast ast, std::uint32_t max_states, Budget& budget);

}  // namespace kvrm::grammar
