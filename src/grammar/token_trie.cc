// SPDX-License-Identifier: Apache-2.0
#include "grammar/token_trie.h"

#include <algorithm>

#include "base/check.h"
#include "grammar/automaton.h"

namespace kvrm {
namespace {

// Longer ones than any model's; a walk keeps a set of configurations a byte.
constexpr std::size_t kMaxTokenBytes = 4096;

}  // namespace

TokenTrie::TokenTrie(std::uint32_t vocab_size,
                     const std::function<std::string(std::int32_t id)>& bytes_of)
    : vocab_size_(vocab_size) {
  first_byte_.reserve(std::size_t{vocab_size} + 1);
  for (std::uint32_t id = 0; id < vocab_size; ++id) {
    first_byte_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    const std::string text = bytes_of(static_cast<std::int32_t>(id));
    if (text.empty() || text.size() > kMaxTokenBytes) continue;
    bytes_ += text;
    tokens_.push_back(static_cast<std::int32_t>(id));
  }
  first_byte_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  // char_traits compares as unsigned bytes.
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [this](std::int32_t a, std::int32_t b) { return Bytes(a) < Bytes(b); });

  std::vector<std::uint32_t> path = {0};
  nodes_.push_back({});
  const auto leave = [&](std::size_t depth) {
    while (path.size() > depth + 1) {
      const std::uint32_t node = path.back();
      path.pop_back();
      nodes_[node].end = static_cast<std::uint32_t>(nodes_.size());
      nodes_[path.back()].groups |=
          nodes_[node].groups | 1u << grammar::ByteGroup(nodes_[node].byte);
    }
  };
  std::string_view previous;
  for (std::uint32_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view text = Bytes(tokens_[i]);
    const auto common = static_cast<std::size_t>(
        std::mismatch(text.begin(), text.end(), previous.begin(), previous.end()).first -
        text.begin());
    leave(common);
    for (std::size_t depth = common; depth < text.size(); ++depth) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({.first_token = i,
                        .depth = static_cast<std::uint16_t>(depth + 1),
                        .byte = static_cast<std::uint8_t>(text[depth])});
    }
    max_depth_ = std::max(max_depth_, static_cast<std::uint32_t>(text.size()));
    previous = text;
  }
  leave(0);
  nodes_[0].end = static_cast<std::uint32_t>(nodes_.size());
  nodes_.push_back(
      {.end = nodes_[0].end, .first_token = static_cast<std::uint32_t>(tokens_.size())});
  nodes_.shrink_to_fit();
  tokens_.shrink_to_fit();
}

std::string_view TokenTrie::Bytes(std::int32_t id) const noexcept {
  const auto i = static_cast<std::size_t>(id);
  return std::string_view(bytes_).substr(first_byte_[i], first_byte_[i + 1] - first_byte_[i]);
}

std::size_t TokenTrie::reserved_bytes() const noexcept {
  return nodes_.capacity() * sizeof(Node) + tokens_.capacity() * sizeof(std::int32_t) +
         first_byte_.capacity() * sizeof(std::uint32_t) + bytes_.capacity();
}

}  // namespace kvrm
