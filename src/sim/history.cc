// SPDX-License-Identifier: Apache-2.0
#include "sim/history.h"

#include <algorithm>

#include "base/check.h"

namespace kvrm {

void FillLogits(std::uint64_t digest, std::span<float> logits) {
  std::ranges::fill(logits, 0.0f);
  logits[digest % logits.size()] = 1.0f + static_cast<float>(digest >> 48) / 16384.0f;
}

void History::Append(std::int32_t token) {
  const auto position = static_cast<std::uint32_t>(tokens_.size());
  tokens_.push_back(token);
  std::uint64_t stamp = FirstStamp(token, position);
  for (std::uint32_t layer = 0; layer < kSimLayers; ++layer) {
    if (layer > 0) stamp = NextStamp(seen_[layer - 1], layer);
    stamps_[layer].push_back(stamp);
    seen_[layer] = See(seen_[layer], stamp);
  }
}

void History::Truncate(std::uint32_t num_tokens) {
  CHECK(num_tokens <= length());
  if (num_tokens == length()) return;
  tokens_.resize(num_tokens);
  for (std::vector<std::uint64_t>& stamps : stamps_)
    stamps.resize(num_tokens);
  const std::uint32_t num_blocks = (num_tokens + block_tokens_ - 1) / block_tokens_;
  if (holes_.size() > num_blocks) holes_.resize(num_blocks);
  LookAgain();
}

void History::Drop(std::uint32_t first_block, std::uint32_t end_block) {
  if (holes_.size() < end_block) holes_.resize(end_block, false);
  std::fill(holes_.begin() + first_block, holes_.begin() + end_block, true);
  LookAgain();
}

void History::LookAgain() {
  for (std::uint32_t layer = 0; layer < kSimLayers; ++layer) {
    std::uint64_t seen = 0;
    for (std::uint32_t p = 0; p < length(); ++p) {
      if (!IsHole(p / block_tokens_)) seen = See(seen, stamps_[layer][p]);
    }
    seen_[layer] = seen;
  }
}

}  // namespace kvrm
