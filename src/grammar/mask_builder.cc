// SPDX-License-Identifier: Apache-2.0
#include "grammar/mask_builder.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace {

using grammar::Automaton;
using grammar::Config;
using grammar::ConfigSet;
using grammar::kDone;
using grammar::StackPool;
using grammar::StateId;
using grammar::Stepper;

// Steps of one mask: about 20 ms. A string in a vocabulary of 150,000 takes 0.4 million.
constexpr std::uint64_t kMaxMaskWork = 3'000'000;
// No limit on depth is this great.
constexpr std::uint32_t kAnyDepth = 1u << 30;
// A walk of more nodes than this (about 0.1 ms) is worth a place.
constexpr std::uint64_t kLongWalk = 4096;
// Below this, asking for each byte costs more than it saves.
constexpr std::uint32_t kFewExits = 32;

// In English vocabularies of 128,000 tokens about 900 texts end a string of JSON.
std::uint32_t MaxExits(const TokenTrie& trie) {
  return static_cast<std::uint32_t>(std::max<std::size_t>(64, trie.mask_words()));
}

// Of states and the stacks behind them, in any order.
std::uint64_t HashOf(GrammarMatcher& matcher) {
  const StackPool& pool = matcher.pool();
  std::uint64_t sum = 0;
  for (const Config& config : matcher.configs()) {
    std::uint64_t hash = Mix64(config.state);
    for (std::uint32_t node = config.stack; node != StackPool::kRoot; node = pool.parent(node))
      hash = Mix64(hash ^ pool.back(node));
    sum += Mix64(hash);
  }
  return Mix64(sum) | std::uint64_t{1} << 63;
}

std::size_t NumPlaces(const TokenTrie& trie, std::size_t cache_bytes) {
  const std::size_t place_bytes = (trie.mask_words() + MaxExits(trie)) * sizeof(std::uint32_t);
  return std::clamp<std::size_t>(cache_bytes / place_bytes, 1, 1024);
}

}  // namespace

MaskBuilder::MaskBuilder(const TokenTrie& trie, std::size_t cache_bytes)
    : trie_(trie),
      max_exits_(MaxExits(trie)),
      configs_((std::size_t{trie.max_depth()} + 1) * grammar::kMaxConfigs),
      counts_(std::size_t{trie.max_depth()} + 1),
      pool_sizes_(std::size_t{trie.max_depth()} + 1),
      places_(NumPlaces(trie, cache_bytes)),
      buckets_(places_.size(), kNoPlace),
      masks_(places_.size() * trie.mask_words()),
      exits_(places_.size() * max_exits_) {}

std::size_t MaskBuilder::reserved_bytes() const noexcept {
  return configs_.size() * sizeof(Config) + places_.size() * sizeof(Place) +
         (counts_.size() + pool_sizes_.size() + buckets_.size() + masks_.size() + exits_.size()) *
             sizeof(std::uint32_t);
}

MaskOutcome MaskBuilder::Build(GrammarMatcher& matcher, std::span<std::uint32_t> allowed) noexcept {
  CHECK(allowed.size() == trie_.mask_words());
  ++stats_.num_masks;
  work_ = 0;
  const std::uint64_t key = HashOf(matcher);
  if (const std::uint32_t place = Find(matcher.grammar().id(), key); place != kNoPlace) {
    ++stats_.num_cache_hits;
    places_[place].used = ++clock_;
    const std::uint32_t* mask = masks_.data() + place * trie_.mask_words();
    std::copy_n(mask, allowed.size(), allowed.begin());
  } else if (!WalkSet(matcher, key, allowed)) {
    return MaskOutcome::kTooMuch;
  }
  const bool any = std::any_of(allowed.begin(), allowed.end(), [](std::uint32_t w) { return w; });
  return any ? MaskOutcome::kTokens : MaskOutcome::kNone;
}

// False: it is too much.
bool MaskBuilder::WalkSet(GrammarMatcher& matcher, std::uint64_t key,
                          std::span<std::uint32_t> allowed) noexcept {
  std::fill(allowed.begin(), allowed.end(), 0u);
  const std::uint64_t visited_before = stats_.num_visited;
  const std::uint64_t fills_before = stats_.num_cache_fills;
  const Automaton& automaton = matcher.grammar().automaton();
  std::array<Config, grammar::kMaxConfigs> narrow;
  std::uint32_t num_narrow = 0;
  for (const Config& config : matcher.configs()) {
    const Automaton::State& state = automaton.state(config.state);
    if (state.num_edges == 0) continue;
    if (!state.is_wide || !AddWide(matcher, config, allowed)) narrow[num_narrow++] = config;
  }
  const std::uint32_t pool_size = matcher.pool().size();
  Stepper stepper(automaton, matcher.pool(), matcher.grammar().max_depth());
  std::copy_n(narrow.begin(), num_narrow, configs_.begin());
  counts_[0] = num_narrow;
  Walk walk = {
      .stepper = stepper, .automaton = automaton, .pool = matcher.pool(), .allowed = allowed};
  const bool ended = WalkBelow(walk, 0);
  matcher.pool().Truncate(pool_size);
  if (!ended || work_ > kMaxMaskWork) return false;
  // What is kept of a state alone will make the next walk a short one.
  const bool is_long = stats_.num_visited - visited_before > kLongWalk;
  if (is_long && stats_.num_cache_fills == fills_before) Keep(matcher, key, allowed);
  return true;
}

void MaskBuilder::Keep(const GrammarMatcher& matcher, std::uint64_t key,
                       std::span<const std::uint32_t> allowed) noexcept {
  const std::uint32_t place = TakeOldest();
  std::copy(allowed.begin(), allowed.end(),
            masks_.begin() + static_cast<std::ptrdiff_t>(place * trie_.mask_words()));
  Enter(place, {.grammar = matcher.grammar().id(), .key = key});
}

void MaskBuilder::Enter(std::uint32_t place, const Place& entry) noexcept {
  std::uint32_t& bucket = buckets_[BucketOf(entry.grammar, entry.key)];
  places_[place] = entry;
  places_[place].next = bucket;
  places_[place].used = ++clock_;
  bucket = place;
  ++stats_.num_cache_fills;
}

// False: what is kept does not hold here, and the state has to be walked with its stack.
bool MaskBuilder::AddWide(GrammarMatcher& matcher, const Config& config,
                          std::span<std::uint32_t> allowed) noexcept {
  const Grammar& grammar = matcher.grammar();
  std::uint32_t place = Find(grammar.id(), config.state);
  if (place == kNoPlace) {
    place = Fill(matcher, config.state);
    if (place == kNoPlace) return false;
  } else {
    ++stats_.num_cache_hits;
  }
  const Place& kept = places_[place];
  // Nearer to the limit some of these tokens would nest too deep.
  if (matcher.pool().depth(config.stack) + kept.reached > grammar.max_depth()) return false;
  places_[place].used = ++clock_;
  const std::uint32_t* mask = masks_.data() + place * trie_.mask_words();
  for (std::size_t i = 0; i < allowed.size(); ++i)
    allowed[i] |= mask[i];
  if (config.stack == StackPool::kRoot) return true;
  const std::uint32_t* exits = exits_.data() + std::size_t{place} * max_exits_;
  return FollowExits(matcher, config, kept, exits, allowed);
}

// Walks one state as if nothing were on its stack.
std::uint32_t MaskBuilder::Fill(GrammarMatcher& matcher, StateId state) noexcept {
  const std::uint32_t place = TakeOldest();
  const std::uint32_t pool_size = matcher.pool().size();
  const Automaton& automaton = matcher.grammar().automaton();
  Stepper stepper(automaton, matcher.pool(), kAnyDepth);
  Walk walk = {.stepper = stepper,
               .automaton = automaton,
               .pool = matcher.pool(),
               .allowed = {masks_.data() + place * trie_.mask_words(), trie_.mask_words()},
               .exits = exits_.data() + std::size_t{place} * max_exits_};
  std::fill(walk.allowed.begin(), walk.allowed.end(), 0u);
  configs_[0] = {state, StackPool::kRoot};
  counts_[0] = 1;
  const bool ended = WalkBelow(walk, 0);
  matcher.pool().Truncate(pool_size);
  if (!ended || walk.num_exits > max_exits_) return kNoPlace;
  Enter(place, {.grammar = matcher.grammar().id(),
                .key = state,
                .num_exits = walk.num_exits,
                .reached = stepper.reached()});
  return place;
}

// Behind the end of the rule it is the callers' turn.
bool MaskBuilder::FollowExits(GrammarMatcher& matcher, const Config& config, const Place& place,
                              const std::uint32_t* exits,
                              std::span<std::uint32_t> allowed) noexcept {
  StackPool& pool = matcher.pool();
  const std::uint32_t pool_size = pool.size();
  const Automaton& automaton = matcher.grammar().automaton();
  Stepper stepper(automaton, pool, matcher.grammar().max_depth());
  ConfigSet set = Level(0);
  stepper.Add({pool.back(config.stack), pool.parent(config.stack)}, set);
  counts_[0] = set.count;
  bool good = !stepper.overflowed();
  std::array<bool, 256> leads_on;
  leads_on.fill(place.num_exits < kFewExits);
  for (std::size_t byte = 0; byte < 256 && !leads_on[byte]; ++byte) {
    for (const Config& c : set.view())
      leads_on[byte] = leads_on[byte] ||
                       automaton.Next(c.state, static_cast<std::uint8_t>(byte)) != grammar::kDead;
  }
  Walk walk = {.stepper = stepper, .automaton = automaton, .pool = pool, .allowed = allowed};
  const std::span<const TokenTrie::Node> nodes = trie_.nodes();
  for (std::uint32_t i = 0; i < place.num_exits && good; ++i) {
    bool any = false;
    for (std::uint32_t below = exits[i] + 1; below < nodes[exits[i]].end && !any;
         below = nodes[below].end)
      any = leads_on[nodes[below].byte];
    if (any) good = WalkBelow(walk, exits[i]);
  }
  pool.Truncate(pool_size);
  // The caller walks the whole state then, and finds out that it is too much.
  return good;
}

// Level 0 holds the configurations at `node`. False: there are too many, or too much was done.
bool MaskBuilder::WalkBelow(Walk& walk, std::uint32_t node) noexcept {
  const std::span<const TokenTrie::Node> nodes = trie_.nodes();
  const std::uint32_t end = nodes[node].end;
  const std::uint32_t base = nodes[node].depth;
  pool_sizes_[0] = walk.pool.size();
  const std::uint64_t work_before = walk.stepper.work();
  std::uint64_t num_visited = 0;
  bool good = true;
  for (std::uint32_t i = node + 1; i < end;) {
    const TokenTrie::Node& at = nodes[i];
    const std::uint32_t depth = at.depth - base;
    const ConfigSet parent = {.configs = Level(depth - 1).configs, .count = counts_[depth - 1]};
    ConfigSet set = Level(depth);
    walk.pool.Truncate(pool_sizes_[depth - 1]);
    walk.stepper.Step(parent.view(), at.byte, set);
    ++num_visited;
    if (walk.stepper.overflowed() || work_ + walk.stepper.work() - work_before > kMaxMaskWork) {
      good = false;
      break;
    }
    if (set.count == 0) {
      i = at.end;
      continue;
    }
    counts_[depth] = set.count;
    pool_sizes_[depth] = walk.pool.size();
    const Automaton::State& first = walk.automaton.state(set.configs[0].state);
    if (set.count == 1 && first.is_plain && (at.groups & ~first.stays) == 0) {
      Allow(at.first_token, nodes[at.end].first_token, walk.allowed);
      i = at.end;
      continue;
    }
    Allow(at.first_token, nodes[i + 1].first_token, walk.allowed);
    const auto is_done = [](const Config& config) { return config.state == kDone; };
    const std::span<const Config> view = set.view();
    if (walk.exits != nullptr && at.end > i + 1 && std::any_of(view.begin(), view.end(), is_done)) {
      if (walk.num_exits < max_exits_) walk.exits[walk.num_exits] = i;
      ++walk.num_exits;
    }
    ++i;
  }
  work_ += walk.stepper.work() - work_before;
  stats_.num_visited += num_visited;
  return good;
}

void MaskBuilder::Allow(std::uint32_t first, std::uint32_t end,
                        std::span<std::uint32_t> allowed) noexcept {
  const std::span<const std::int32_t> tokens = trie_.tokens();
  for (std::uint32_t i = first; i < end; ++i) {
    const auto token = static_cast<std::uint32_t>(tokens[i]);
    allowed[token / 32] |= 1u << token % 32;
  }
}

std::uint32_t MaskBuilder::BucketOf(std::uint64_t grammar, std::uint64_t key) const noexcept {
  return static_cast<std::uint32_t>(Mix64(Mix64(grammar) ^ key) % buckets_.size());
}

std::uint32_t MaskBuilder::Find(std::uint64_t grammar, std::uint64_t key) noexcept {
  for (std::uint32_t place = buckets_[BucketOf(grammar, key)]; place != kNoPlace;
       place = places_[place].next) {
    if (places_[place].grammar == grammar && places_[place].key == key) return place;
  }
  return kNoPlace;
}

// Linear in the places, which is nothing beside the walk that fills one. What was kept is gone.
std::uint32_t MaskBuilder::TakeOldest() noexcept {
  const auto oldest =
      std::min_element(places_.begin(), places_.end(),
                       [](const Place& a, const Place& b) { return a.used < b.used; });
  const auto place = static_cast<std::uint32_t>(oldest - places_.begin());
  if (oldest->grammar != 0) {
    std::uint32_t* link = &buckets_[BucketOf(oldest->grammar, oldest->key)];
    while (*link != place)
      link = &places_[*link].next;
    *link = oldest->next;
  }
  *oldest = {};
  return place;
}

}  // namespace kvrm
