// SPDX-License-Identifier: Apache-2.0
// Grammar: what an output must look like, compiled for GrammarMatcher.
//
// Threading: Compile may run on any thread, and takes at most 250 ms and 32 MiB, both counted and
// not timed (grammar/budget.h); a Grammar is immutable and may be shared. Memory: bytes().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "grammar/automaton.h"

namespace kvrm {

enum class GrammarKind : std::uint8_t { kNone, kGbnf, kJsonSchema, kJsonObject, kRegex };

struct GrammarSpec {
  GrammarKind kind = GrammarKind::kNone;
  std::string text = {};  // grammar, schema (JSON) or expression; kJsonObject has none

  bool operator==(const GrammarSpec&) const = default;
};

// A regular expression alone has fewer states than anything with rules.
constexpr std::uint32_t kMaxRegexStates = 20'000;

class Grammar;
// Held by the cache of compiled grammars and by every output that follows it, whichever ends last.
using SharedGrammar = std::shared_ptr<const Grammar>;

class Grammar {
 public:
  // Requires: spec.kind != kNone. Errors name the construct and the limit: kInvalidArgument,
  // kUnsupported, kTooLarge.
  static Result<SharedGrammar> Compile(const GrammarSpec& spec);

  const grammar::Automaton& automaton() const noexcept { return automaton_; }
  // Different for every grammar of this process.
  std::uint64_t id() const noexcept { return id_; }
  // Levels that the stack of a matcher may have: beyond it, nesting is not offered.
  std::uint32_t max_depth() const noexcept { return max_depth_; }
  std::size_t bytes() const noexcept { return sizeof(*this) + automaton_.bytes(); }

  // What compiling took, in steps and bytes of the budget.
  std::uint64_t compile_work() const noexcept { return compile_work_; }
  std::uint64_t compile_bytes() const noexcept { return compile_bytes_; }

 private:
  Grammar() = default;
  static Result<SharedGrammar> Shared(Grammar grammar) {
    return SharedGrammar(std::make_shared<Grammar>(std::move(grammar)));
  }
  Status Finish(GrammarKind kind, const grammar::Budget& budget);

  grammar::Automaton automaton_;
  std::uint64_t id_ = 0;
  std::uint32_t max_depth_ = 0;
  std::uint64_t compile_work_ = 0;
  std::uint64_t compile_bytes_ = 0;
};

}  // namespace kvrm
