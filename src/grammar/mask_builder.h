// SPDX-License-Identifier: Apache-2.0
// MaskBuilder: which tokens of a vocabulary an output may go on with.
//
// The tokens that fit are found by walking the vocabulary's trie with the matcher's set of
// configurations: a branch is left as soon as no configuration is left, and taken whole where a
// state leads back to itself with every byte of it.
//
// A state that allows many tokens (inside a string) is walked once, with an unknown stack: the
// tokens that stay within its rule are the same for every stack, and are kept as a mask; where a
// token gets to the end of the rule (behind the quote) is kept as a list of nodes, from which the
// walk goes on with the stack at hand. A set whose walk was long all the same is kept as it is,
// with its stacks, under a hash of 63 bits; a matcher takes no token that does not fit, so that a
// hash that is two sets' ends a request and lets nothing through. Masks live in a fixed number of
// places, the least recently used one gives way.
//
// Threading: one thread. Memory: reserved by the constructor (reserved_bytes). Build neither
// allocates nor throws, and takes a bounded number of steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "grammar/matcher.h"
#include "grammar/token_trie.h"

namespace kvrm {

enum class MaskOutcome : std::uint8_t {
  kTokens,   // at least one token is allowed
  kNone,     // none: the output is complete, or the vocabulary cannot spell what has to follow
  kTooMuch,  // the grammar is too ambiguous here: the request has to end
};

struct MaskStats {
  std::uint64_t num_masks = 0;
  std::uint64_t num_cache_hits = 0;
  std::uint64_t num_cache_fills = 0;
  std::uint64_t num_visited = 0;  // nodes of the trie
};

class MaskBuilder {
 public:
  // `trie` outlives the builder. `cache_bytes`: room for masks; at least one place is made.
  MaskBuilder(const TokenTrie& trie, std::size_t cache_bytes);

  // Bit i of `allowed` says whether token i fits next; those of control tokens are 0. The matcher
  // is as before. Requires: allowed.size() == trie.mask_words().
  MaskOutcome Build(GrammarMatcher& matcher, std::span<std::uint32_t> allowed) noexcept;

  const MaskStats& stats() const noexcept { return stats_; }
  std::size_t reserved_bytes() const noexcept;

 private:
  static constexpr std::uint32_t kNoPlace = 0xFFFFFFFFu;
  // What is kept of one state.
  struct Place {
    std::uint64_t grammar = 0;  // 0: empty
    std::uint64_t key = 0;      // a state, or the hash of a set
    std::uint32_t num_exits = 0;
    std::uint32_t reached = 0;      // Stepper::reached
    std::uint32_t next = kNoPlace;  // of the same bucket
    std::uint64_t used = 0;
  };
  // One walk: from where, with what, and what becomes of it.
  struct Walk {
    grammar::Stepper& stepper;
    const grammar::Automaton& automaton;
    grammar::StackPool& pool;
    std::span<std::uint32_t> allowed;
    std::uint32_t* exits = nullptr;  // null: not wanted
    std::uint32_t num_exits = 0;
  };

  bool WalkSet(GrammarMatcher& matcher, std::uint64_t key,
               std::span<std::uint32_t> allowed) noexcept;
  bool AddWide(GrammarMatcher& matcher, const grammar::Config& config,
               std::span<std::uint32_t> allowed) noexcept;
  std::uint32_t Fill(GrammarMatcher& matcher, grammar::StateId state) noexcept;
  bool FollowExits(GrammarMatcher& matcher, const grammar::Config& config, const Place& place,
                   const std::uint32_t* exits, std::span<std::uint32_t> allowed) noexcept;
  bool WalkBelow(Walk& walk, std::uint32_t node) noexcept;
  void Allow(std::uint32_t first, std::uint32_t end, std::span<std::uint32_t> allowed) noexcept;

  void Keep(const GrammarMatcher& matcher, std::uint64_t key,
            std::span<const std::uint32_t> allowed) noexcept;
  void Enter(std::uint32_t place, const Place& entry) noexcept;

  std::uint32_t Find(std::uint64_t grammar, std::uint64_t key) noexcept;
  std::uint32_t TakeOldest() noexcept;
  std::uint32_t BucketOf(std::uint64_t grammar, std::uint64_t key) const noexcept;
  grammar::ConfigSet Level(std::uint32_t depth) noexcept {
    return {.configs = configs_.data() + std::size_t{depth} * grammar::kMaxConfigs};
  }

  const TokenTrie& trie_;
  const std::uint32_t max_exits_;
  std::vector<grammar::Config> configs_;   // [max_depth + 1][kMaxConfigs]
  std::vector<std::uint32_t> counts_;      // [max_depth + 1]
  std::vector<std::uint32_t> pool_sizes_;  // [max_depth + 1]
  std::vector<Place> places_;
  std::vector<std::uint32_t> buckets_;
  std::vector<std::uint32_t> masks_;  // [places][mask_words]
  std::vector<std::uint32_t> exits_;  // [places][max_exits]
  std::uint64_t work_ = 0;            // of the Build at hand
  std::uint64_t clock_ = 0;
  MaskStats stats_;
};

}  // namespace kvrm
