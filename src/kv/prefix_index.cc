// SPDX-License-Identifier: Apache-2.0
#include "kv/prefix_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/mutant.h"
#include "base/rng.h"

namespace kvrm {

PrefixIndex::PrefixIndex(std::uint32_t num_blocks, std::uint32_t block_tokens)
    : block_tokens_(block_tokens),
      slots_(num_blocks == 0 ? 0 : std::bit_ceil(std::size_t{num_blocks} * 2), 0),
      keys_(num_blocks),
      tokens_(std::size_t{num_blocks} * block_tokens),
      listed_(num_blocks, false),
      idle_next_(num_blocks, 0),
      idle_prev_(num_blocks, 0) {}

// Where the search for a key begins. The key is a SHA-256, so any eight bytes of it are a hash.
std::size_t PrefixIndex::SlotOf(const PrefixKey& key) const noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, key.bytes.data(), sizeof word);
  return word & (slots_.size() - 1);
}

std::optional<BlockId> PrefixIndex::Find(const PrefixKey& key,
                                         std::span<const std::int32_t> tokens) const noexcept {
  if (!is_on()) return std::nullopt;
  CHECK(tokens.size() == block_tokens_);
  for (std::size_t slot = SlotOf(key); slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
    const std::uint32_t block = slots_[slot];
    if (!(keys_[block] == key)) continue;
    const bool same = std::ranges::equal(TokensOf(block), tokens);
    if (!same && !IsMutant(Mutant::kKeyWithoutTokens)) return std::nullopt;
    return BlockId{block};
  }
  return std::nullopt;
}

bool PrefixIndex::Insert(BlockId block, const PrefixKey& key,
                         std::span<const std::int32_t> tokens) noexcept {
  CHECK(is_on() && !listed_[Index(block)] && block != kSentinelBlock);
  CHECK(tokens.size() == block_tokens_);
  std::size_t slot = SlotOf(key);
  for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
    if (keys_[slots_[slot]] == key) return false;
  }
  slots_[slot] = Index(block);
  keys_[Index(block)] = key;
  std::ranges::copy(tokens,
                    tokens_.begin() + static_cast<std::ptrdiff_t>(Index(block)) * block_tokens_);
  listed_[Index(block)] = true;
  ++num_listed_;
  return true;
}

void PrefixIndex::Erase(BlockId block) noexcept {
  CHECK(IsListed(block));
  const std::size_t mask = slots_.size() - 1;
  std::size_t hole = SlotOf(keys_[Index(block)]);
  while (slots_[hole] != Index(block))
    hole = (hole + 1) & mask;
  // Whoever probed past the hole moves into it, so that no search ends there too early.
  for (std::size_t slot = (hole + 1) & mask; slots_[slot] != 0; slot = (slot + 1) & mask) {
    const std::size_t home = SlotOf(keys_[slots_[slot]]);
    if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
    slots_[hole] = slots_[slot];
    hole = slot;
  }
  slots_[hole] = 0;
  listed_[Index(block)] = false;
  --num_listed_;
}

void PrefixIndex::Move(BlockId source, BlockId target) noexcept {
  const PrefixKey key = keys_[Index(source)];
  Erase(source);
  CHECK(Insert(target, key, TokensOf(Index(source))));
}

void PrefixIndex::GiveUp(BlockId block) noexcept {
  CHECK(IsListed(block));
  const std::uint32_t b = Index(block);
  CHECK(idle_next_[b] == 0 && idle_prev_[b] == 0 && idle_next_[0] != b);  // X2
  const std::uint32_t youngest = idle_prev_[0];
  idle_prev_[b] = youngest;
  idle_next_[b] = 0;
  idle_next_[youngest] = b;
  idle_prev_[0] = b;
  ++num_idle_;
}

void PrefixIndex::TakeUp(BlockId block) noexcept {
  const std::uint32_t b = Index(block);
  CHECK(idle_next_[b] != 0 || idle_prev_[b] != 0 || idle_next_[0] == b);  // X2
  idle_next_[idle_prev_[b]] = idle_next_[b];
  idle_prev_[idle_next_[b]] = idle_prev_[b];
  idle_next_[b] = idle_prev_[b] = 0;
  --num_idle_;
}

std::uint64_t PrefixIndex::reserved_bytes() const noexcept {
  return slots_.size() * sizeof(slots_[0]) + keys_.size() * sizeof(PrefixKey) +
         tokens_.size() * sizeof(tokens_[0]) + listed_.size() / 8 +
         (idle_next_.size() + idle_prev_.size()) * sizeof(idle_next_[0]);
}

void PrefixIndex::CheckInvariants() const {
  std::uint32_t num_listed = 0;
  for (std::uint32_t b = 0; b < listed_.size(); ++b) {
    if (!listed_[b]) continue;
    ++num_listed;
    CHECK(Find(keys_[b], TokensOf(b)) == BlockId{b});  // X1
  }
  CHECK(num_listed == num_listed_);
  if (!is_on()) return;
  std::uint32_t num_idle = 0;
  for (std::uint32_t b = idle_next_[0], before = 0; b != 0; before = b, b = idle_next_[b]) {
    CHECK(listed_[b] && idle_prev_[b] == before && ++num_idle <= num_listed);  // X2
  }
  CHECK(num_idle == num_idle_);  // X2
}

std::uint64_t PrefixIndex::StateHash() const {
  std::uint64_t hash = 0;
  const auto mix = [&hash](std::uint64_t value) { hash = Mix64(hash ^ value); };
  for (std::uint32_t b = 0; b < listed_.size(); ++b) {
    if (!listed_[b]) continue;
    std::array<std::uint64_t, 4> words;
    std::memcpy(words.data(), keys_[b].bytes.data(), sizeof words);
    mix(b);
    for (const std::uint64_t word : words)
      mix(word);
  }
  if (!is_on()) return hash;
  for (std::uint32_t b = idle_next_[0]; b != 0; b = idle_next_[b])
    mix(b);
  return hash;
}

}  // namespace kvrm
