// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar_guide.h"

namespace kvrm {

GrammarGuide::GrammarGuide(std::uint32_t vocab_size,
                           const std::function<std::string(std::int32_t id)>& bytes_of,
                           std::size_t cache_bytes) {
  if (!bytes_of) return;
  trie_ = std::make_unique<const TokenTrie>(vocab_size, bytes_of);
  builder_ = std::make_unique<MaskBuilder>(*trie_, cache_bytes);
  mask_.resize(trie_->mask_words());
}

std::span<const std::uint32_t> GrammarGuide::Allowed(
    GrammarMatcher& matcher, std::span<const std::int32_t> stop_ids) noexcept {
  if (builder_->Build(matcher, mask_) == MaskOutcome::kTooMuch) return {};
  const bool may_end = matcher.IsComplete();
  for (const std::int32_t id : stop_ids) {
    if (id < 0 || static_cast<std::uint32_t>(id) >= trie_->vocab_size()) continue;
    const auto token = static_cast<std::uint32_t>(id);
    const std::uint32_t bit = 1u << token % 32;
    mask_[token / 32] = may_end ? mask_[token / 32] | bit : mask_[token / 32] & ~bit;
  }
  return mask_;
}

std::size_t GrammarGuide::reserved_bytes() const noexcept {
  if (!available()) return 0;
  return trie_->reserved_bytes() + builder_->reserved_bytes() +
         mask_.size() * sizeof(std::uint32_t);
}

}  // namespace kvrm
