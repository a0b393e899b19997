// SPDX-License-Identifier: Apache-2.0
// Lowering: decides which rules become part of their callers, and brings repeats into a form whose
// automata stay small.
//
// A rule that is small and does not call itself is copied into its callers, which makes them
// deterministic. A rule that holds text of any length between delimiters (a string of JSON) stays
// one, so that the tokens its states allow are found once and not for each caller; one whose text
// goes on for as long as it likes (a word) does not, since whatever follows it may be in the same
// token. Long repeats of characters go through a rule for 64 of them at a time; those of anything
// larger are chains of calls.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "grammar/ast.h"
#include "grammar/budget.h"

namespace kvrm::grammar {

// The longest chain of calls; more of something that has to be there is refused, more of something
// that may be there is cut to it.
constexpr std::uint32_t kMaxCopies = 16384;

// By rule, those that lowering has added included: whether it becomes part of its callers.
struct Lowered {
  std::vector<bool> is_inlined;
};

// Requires: every rule that is called is defined, and the trees' depth is bounded.
Result<Lowered> Lower(Ast& ast, Budget& budget);

}  // namespace kvrm::grammar
