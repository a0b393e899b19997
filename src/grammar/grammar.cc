// SPDX-License-Identifier: Apache-2.0
#include "grammar/grammar.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/check.h"
#include "grammar/gbnf.h"
#include "grammar/json_schema.h"
#include "grammar/matcher.h"
#include "grammar/regex.h"

namespace kvrm {
namespace {

// Readers of JSON, ours among them, take 64 levels; an object or array is one.
constexpr std::uint32_t kJsonDepth = 60;

Status Parse(const GrammarSpec& spec, grammar::Ast& ast) {
  switch (spec.kind) {
    case GrammarKind::kGbnf:
      return grammar::ParseGbnf(spec.text, ast);
    case GrammarKind::kJsonSchema:
      return grammar::ParseJsonSchema(spec.text, ast);
    case GrammarKind::kJsonObject:
      grammar::DefineJsonObject(ast);
      return Done{};
    case GrammarKind::kNone:
    case GrammarKind::kRegex:
      break;
  }
  const Result<grammar::NodeId> root =
      grammar::ParseRegex(spec.text, grammar::RegexUse::kWholeText, ast);
  if (!root) return root.error();
  ast.root = ast.AddRule("the regular expression");
  ast.Define(ast.root, root.value());
  return Done{};
}

}  // namespace

Result<SharedGrammar> Grammar::Compile(const GrammarSpec& spec) {
  CHECK(spec.kind != GrammarKind::kNone);
  grammar::Ast ast;
  if (const Status parsed = Parse(spec, ast); !parsed) return parsed.error();
  if (ast.overflowed()) return Error{ErrorCode::kTooLarge, "the grammar has too many parts"};
  grammar::Budget budget;
  const std::uint32_t max_states =
      spec.kind == GrammarKind::kRegex ? kMaxRegexStates : grammar::kMaxStates;
  Result<grammar::Automaton> automaton =
      grammar::BuildAutomaton(std::move(ast), max_states, budget);
  if (!automaton) return automaton.error();
  Grammar grammar;
  grammar.automaton_ = std::move(*automaton);
  if (const Status finished = grammar.Finish(spec.kind, budget); !finished) return finished.error();
  return Shared(std::move(grammar));
}

// A grammar that is open in too many ways before anything is read would fail every request.
Status Grammar::Finish(GrammarKind kind, const grammar::Budget& budget) {
  static std::atomic<std::uint64_t> next_id{1};
  id_ = next_id.fetch_add(1, std::memory_order_relaxed);
  compile_work_ = budget.work();
  compile_bytes_ = budget.bytes();
  const std::uint32_t need = automaton_.state(automaton_.start()).need;
  const bool is_json = kind == GrammarKind::kJsonSchema || kind == GrammarKind::kJsonObject;
  max_depth_ = is_json ? std::max(kJsonDepth, 2 * need) : grammar::kMaxDepth;

  grammar::StackPool pool;
  std::array<grammar::Config, grammar::kMaxConfigs> configs;
  grammar::ConfigSet set = {.configs = configs.data()};
  grammar::Stepper stepper(automaton_, pool, max_depth_);
  stepper.Add({automaton_.start(), grammar::StackPool::kRoot}, set);
  if (stepper.overflowed()) {
    return Error{ErrorCode::kTooLarge, "the grammar is too ambiguous: it begins in more than " +
                                           std::to_string(grammar::kMaxConfigs) + " ways at once"};
  }
  return Done{};
}

}  // namespace kvrm
