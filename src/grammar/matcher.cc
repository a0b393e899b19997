// SPDX-License-Identifier: Apache-2.0
#include "grammar/matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace grammar {
namespace {

constexpr std::uint16_t kUnused = 0xFFFF;
// Nodes of stacks that are gone are swept out when there are this many in all.
constexpr std::uint32_t kSweepSize = StackPool::kCapacity / 8;

}  // namespace

StackPool::StackPool() : nodes_(kCapacity), slots_(kSlots, 0), renamed_(kCapacity) {}

std::uint32_t StackPool::SlotOf(StateId back, std::uint32_t parent) const noexcept {
  return static_cast<std::uint32_t>(Mix64(std::uint64_t{back} << 32 | parent)) % kSlots;
}

std::uint32_t StackPool::Push(StateId back, std::uint32_t parent) noexcept {
  std::uint32_t slot = SlotOf(back, parent);
  while (slots_[slot] != 0) {
    const Node& node = nodes_[slots_[slot]];
    if (node.back == back && node.parent == parent) return slots_[slot];
    slot = (slot + 1) % kSlots;
  }
  if (size_ == kCapacity) return kFull;
  nodes_[size_] = {.back = back, .parent = parent, .depth = nodes_[parent].depth + 1};
  slots_[slot] = static_cast<std::uint16_t>(size_);
  return size_++;
}

// The youngest first: nothing that came later was put behind it in a run of slots.
void StackPool::Truncate(std::uint32_t size) noexcept {
  while (size_ > size) {
    --size_;
    std::uint32_t slot = SlotOf(nodes_[size_].back, nodes_[size_].parent);
    while (slots_[slot] != size_)
      slot = (slot + 1) % kSlots;
    slots_[slot] = 0;
  }
}

void StackPool::BeginCompact() noexcept {
  std::fill_n(renamed_.begin(), size_, kUnused);
  renamed_[kRoot] = kRoot;
}

void StackPool::Keep(std::uint32_t node) noexcept {
  for (; renamed_[node] == kUnused; node = nodes_[node].parent)
    renamed_[node] = kRoot;
}

void StackPool::EndCompact() noexcept {
  const std::uint32_t old_size = size_;
  std::fill(slots_.begin(), slots_.end(), std::uint16_t{0});
  size_ = 1;
  for (std::uint32_t node = 1; node < old_size; ++node) {
    if (renamed_[node] == kUnused) continue;
    // Places before `node` are free: parents were renamed before.
    renamed_[node] =
        static_cast<std::uint16_t>(Push(nodes_[node].back, renamed_[nodes_[node].parent]));
  }
}

bool Stepper::Fits(StateId state, std::uint32_t depth) noexcept {
  const std::uint32_t level = depth + automaton_.state(state).need;
  if (level > max_depth_) return false;
  reached_ = std::max(reached_, level);
  return true;
}

void Stepper::AddOne(Config config, ConfigSet& to) noexcept {
  work_ += 1 + to.count;
  for (const Config& other : to.view())
    if (other.state == config.state && other.stack == config.stack) return;
  if (to.count == kMaxConfigs) {
    overflowed_ = true;
    return;
  }
  to.configs[to.count++] = config;
}

void Stepper::Add(Config config, ConfigSet& to) noexcept {
  std::uint32_t next = to.count;
  AddOne(config, to);
  for (; next < to.count && !overflowed_; ++next)
    Follow(to.configs[next], to);
}

void Stepper::Follow(Config config, ConfigSet& to) noexcept {
  const Automaton::State& state = automaton_.state(config.state);
  if (state.is_plain) return;
  const std::uint32_t depth = pool_.depth(config.stack);
  const Automaton::Call* calls = automaton_.calls(config.state);
  for (std::uint32_t i = 0; i < state.num_calls; ++i) {
    if (calls[i].back == kDead) {
      if (Fits(calls[i].start, depth)) AddOne({calls[i].start, config.stack}, to);
      continue;
    }
    if (!Fits(calls[i].back, depth) || !Fits(calls[i].start, depth + 1)) continue;
    const std::uint32_t stack = pool_.Push(calls[i].back, config.stack);
    if (stack == StackPool::kFull) {
      overflowed_ = true;
      return;
    }
    AddOne({calls[i].start, stack}, to);
  }
  if (!state.is_final) return;
  if (config.stack == StackPool::kRoot) {
    AddOne({kDone, StackPool::kRoot}, to);
  } else {
    AddOne({pool_.back(config.stack), pool_.parent(config.stack)}, to);
  }
}

void Stepper::Step(std::span<const Config> from, std::uint8_t byte, ConfigSet& to) noexcept {
  to.count = 0;
  for (const Config& config : from) {
    const StateId next = automaton_.Next(config.state, byte);
    ++work_;
    if (next == kDead || !Fits(next, pool_.depth(config.stack))) continue;
    Add({next, config.stack}, to);
    if (overflowed_) return;
  }
}

}  // namespace grammar

using grammar::Config;
using grammar::ConfigSet;
using grammar::StackPool;
using grammar::Stepper;

GrammarMatcher::GrammarMatcher(SharedGrammar grammar) : grammar_(std::move(grammar)) {
  for (std::vector<Config>& set : sets_)
    set.resize(grammar::kMaxConfigs);
  ConfigSet set = {.configs = sets_[0].data()};
  Stepper stepper(grammar_->automaton(), pool_, grammar_->max_depth());
  stepper.Add({grammar_->automaton().start(), StackPool::kRoot}, set);
  // Compile has tried this and refused what overflows.
  CHECK(!stepper.overflowed());
  count_ = set.count;
}

bool GrammarMatcher::Accept(std::string_view bytes) noexcept {
  const std::uint32_t pool_size = pool_.size();
  Stepper stepper(grammar_->automaton(), pool_, grammar_->max_depth());
  std::span<const Config> from = configs();
  ConfigSet to = {.configs = sets_[1].data()};
  ConfigSet other = {.configs = sets_[2].data()};
  for (const char byte : bytes) {
    stepper.Step(from, static_cast<std::uint8_t>(byte), to);
    overflowed_ = stepper.overflowed();
    if (to.count == 0 || overflowed_) {
      pool_.Truncate(pool_size);
      return false;
    }
    from = to.view();
    std::swap(to, other);
  }
  std::copy(from.begin(), from.end(), sets_[0].begin());
  count_ = static_cast<std::uint32_t>(from.size());
  if (pool_.size() > grammar::kSweepSize) pool_.Compact(std::span(sets_[0].data(), count_));
  return true;
}

bool GrammarMatcher::IsComplete() const noexcept {
  const std::span<const Config> set = configs();
  return std::any_of(set.begin(), set.end(),
                     [](const Config& config) { return config.state == grammar::kDone; });
}

bool GrammarMatcher::IsFinished() const noexcept {
  const std::span<const Config> set = configs();
  return IsComplete() && std::all_of(set.begin(), set.end(), [this](const Config& config) {
           return grammar_->automaton().state(config.state).num_edges == 0;
         });
}

}  // namespace kvrm
