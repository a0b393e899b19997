// SPDX-License-Identifier: Apache-2.0
// Nfa: one rule as edges between states, over bytes, calls of other rules, and nothing.
//
// Threading: one thread. Memory: counted in the budget.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar/ast.h"
#include "grammar/budget.h"
#include "grammar/lower.h"

namespace kvrm::grammar {

struct NfaEdge {
  enum class Kind : std::uint8_t { kNothing, kBytes, kCall };
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  RuleId rule = 0;
  Kind kind = Kind::kNothing;
  std::uint8_t low = 0;  // inclusive, as is high
  std::uint8_t high = 0;
};

struct Nfa {
  std::uint32_t num_states = 0;
  std::uint32_t start = 0;
  std::uint32_t final = 0;
  std::vector<NfaEdge> edges;             // by their `from`
  std::vector<std::uint32_t> first_edge;  // [num_states + 1]
};

// Inlined rules are copied in. Stops early when the budget is spent, which the caller looks at.
Nfa BuildNfa(const Ast& ast, const Lowered& lowered, RuleId rule, Budget& budget);

}  // namespace kvrm::grammar
