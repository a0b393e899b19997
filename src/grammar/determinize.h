// SPDX-License-Identifier: Apache-2.0
// Determinize: the subset construction over bytes and calls.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar/nfa.h"

namespace kvrm::grammar {

struct DfaState {
  struct Edge {
    std::uint8_t low = 0;
    std::uint8_t high = 0;
    std::uint32_t to = 0;
  };
  struct Call {
    RuleId rule = 0;
    std::uint32_t to = 0;
  };
  std::vector<Edge> edges;  // by byte, disjoint
  std::vector<Call> calls;  // by rule, each once
  bool is_final = false;
};

// Appends the rule's states to `states`, its start first. Stops early when the budget is spent or
// there are more than `max_states`.
void Determinize(const Nfa& nfa, std::uint32_t max_states, Budget& budget,
                 std::vector<DfaState>& states);

}  // namespace kvrm::grammar
