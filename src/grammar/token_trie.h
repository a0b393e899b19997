// SPDX-License-Identifier: Apache-2.0
// TokenTrie: the texts of a vocabulary as a trie, in the order in which a walk visits it.
//
// Node 0 is the empty text. The nodes below node i are i + 1 .. end - 1, a node before those below
// it, so that leaving out what begins with a text is a jump to `end`. Tokens without text, control
// tokens among them, are in no node.
//
// Immutable; any thread. Memory: 16 bytes a node and about 8 and its text a token; a vocabulary of
// 128,000 has about 300,000 nodes and takes 7 MiB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvrm {

class TokenTrie {
 public:
  struct Node {
    std::uint32_t end = 0;          // past the last node below
    std::uint32_t first_token = 0;  // into tokens(); the node's own end with the next node's
    std::uint32_t groups = 0;       // of all bytes below (grammar/automaton.h, ByteGroup)
    std::uint16_t depth = 0;        // bytes of the text
    std::uint8_t byte = 0;          // the last one
  };

  // `bytes_of(id)`: what the token adds to the text; "" for tokens that are no text.
  TokenTrie(std::uint32_t vocab_size, const std::function<std::string(std::int32_t id)>& bytes_of);

  std::uint32_t vocab_size() const noexcept { return vocab_size_; }
  std::size_t mask_words() const noexcept { return (std::size_t{vocab_size_} + 31) / 32; }
  // One more than there are nodes: the last is a sentinel with first_token.
  std::span<const Node> nodes() const noexcept { return nodes_; }
  // Ids in the order of nodes; those of one text are together, by id.
  std::span<const std::int32_t> tokens() const noexcept { return tokens_; }
  // "" where the token is no text. Requires: 0 <= id < vocab_size.
  std::string_view Bytes(std::int32_t id) const noexcept;
  std::uint32_t max_depth() const noexcept { return max_depth_; }
  std::size_t reserved_bytes() const noexcept;

 private:
  const std::uint32_t vocab_size_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint32_t> first_byte_;  // [vocab_size + 1]
  std::string bytes_;
  std::uint32_t max_depth_ = 0;
};

}  // namespace kvrm
