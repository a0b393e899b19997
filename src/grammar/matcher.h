// SPDX-License-Identifier: Apache-2.0
// GrammarMatcher: how far one output has come in its grammar.
//
//   configuration  a state of an automaton, and a stack of states to come back to
//   set            all configurations the text read so far can be in, with what follows without
//                  reading: starts of called rules, and the states that ended ones come back to
//
// Stacks are nodes of one pool that name their parents; equal stacks are one node, so a set is
// small where the grammar is not ambiguous: one configuration for each call that is open. A call
// whose end is its caller's end pushes nothing.
//
// Invariants:
//   M1  every configuration can be completed within kMaxDepth: what would not is not entered
//   M2  parents are older than their children, so that the youngest nodes can be taken back
//
// Threading: one thread at a time. Memory: all reserved by the constructor, 45 KiB. Nothing here
// allocates or throws after it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "grammar/grammar.h"

namespace kvrm {

namespace grammar {

class StackPool {
 public:
  static constexpr std::uint32_t kRoot = 0;  // the empty stack
  static constexpr std::uint32_t kFull = 0xFFFFFFFFu;
  static constexpr std::uint32_t kCapacity = 2048;

  StackPool();
  // The one node for this stack, or kFull.
  std::uint32_t Push(StateId back, std::uint32_t parent) noexcept;
  StateId back(std::uint32_t node) const noexcept { return nodes_[node].back; }
  std::uint32_t parent(std::uint32_t node) const noexcept { return nodes_[node].parent; }
  std::uint32_t depth(std::uint32_t node) const noexcept { return nodes_[node].depth; }
  std::uint32_t size() const noexcept { return size_; }
  // Takes back all nodes from `size` on.
  void Truncate(std::uint32_t size) noexcept;

  // Keeps what the configurations' stacks need and renames them.
  template <typename Configs>
  void Compact(Configs configs) noexcept {
    BeginCompact();
    for (const auto& config : configs)
      Keep(config.stack);
    EndCompact();
    for (auto& config : configs)
      config.stack = renamed_[config.stack];
  }

 private:
  struct Node {
    StateId back = kDead;
    std::uint32_t parent = 0;
    std::uint32_t depth = 0;
  };
  static constexpr std::uint32_t kSlots = 2 * kCapacity;
  std::uint32_t SlotOf(StateId back, std::uint32_t parent) const noexcept;
  void BeginCompact() noexcept;
  void Keep(std::uint32_t node) noexcept;
  void EndCompact() noexcept;

  std::vector<Node> nodes_;             // [kCapacity]
  std::vector<std::uint16_t> slots_;    // [kSlots]; 0: free
  std::vector<std::uint16_t> renamed_;  // [kCapacity]; of Compact
  std::uint32_t size_ = 1;
};

struct Config {
  StateId state = kDead;
  std::uint32_t stack = StackPool::kRoot;
};

// A grammar that is open in more ways at once than this is refused or ends its request.
constexpr std::uint32_t kMaxConfigs = 128;

// A set under construction in room for kMaxConfigs.
struct ConfigSet {
  Config* configs = nullptr;
  std::uint32_t count = 0;
  std::span<const Config> view() const noexcept { return {configs, count}; }
};

// The steps of sets; counts what they cost.
class Stepper {
 public:
  Stepper(const Automaton& automaton, StackPool& pool, std::uint32_t max_depth) noexcept
      : automaton_(automaton), pool_(pool), max_depth_(max_depth) {}

  // Adds a configuration and what follows from it without reading.
  void Add(Config config, ConfigSet& to) noexcept;
  // `to` becomes what `from` is after the byte.
  void Step(std::span<const Config> from, std::uint8_t byte, ConfigSet& to) noexcept;

  bool overflowed() const noexcept { return overflowed_; }
  std::uint64_t work() const noexcept { return work_; }
  // The greatest depth + need so far: with this limit or a greater one all would be the same.
  std::uint32_t reached() const noexcept { return reached_; }

 private:
  void AddOne(Config config, ConfigSet& to) noexcept;
  void Follow(Config config, ConfigSet& to) noexcept;
  bool Fits(StateId state, std::uint32_t depth) noexcept;

  const Automaton& automaton_;
  StackPool& pool_;
  const std::uint32_t max_depth_;
  std::uint32_t reached_ = 0;
  std::uint64_t work_ = 0;
  bool overflowed_ = false;
};

}  // namespace grammar

class GrammarMatcher {
 public:
  explicit GrammarMatcher(SharedGrammar grammar);

  // Goes on by a token's text. False, and nothing changes: the text does not fit, which what the
  // mask of MaskBuilder allows always does; or the grammar is open in more ways than there is room
  // for, and overflowed() says so. A mask looks at one way after the other and may not see that.
  bool Accept(std::string_view bytes) noexcept;
  bool overflowed() const noexcept { return overflowed_; }
  // What was read is a text of the grammar.
  bool IsComplete() const noexcept;
  // It is, and nothing can follow.
  bool IsFinished() const noexcept;

  const Grammar& grammar() const noexcept { return *grammar_; }
  std::span<const grammar::Config> configs() const noexcept { return {sets_[0].data(), count_}; }
  // For walks, which take back what they push.
  grammar::StackPool& pool() noexcept { return pool_; }

 private:
  SharedGrammar grammar_;
  grammar::StackPool pool_;
  std::array<std::vector<grammar::Config>, 3> sets_;  // [kMaxConfigs] each; the first is the state
  std::uint32_t count_ = 0;
  bool overflowed_ = false;  // the last Accept had no room
};

}  // namespace kvrm
