// SPDX-License-Identifier: Apache-2.0
#include "step/prefix_key.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace kvrm {
namespace {

void AddField(std::span<const std::byte> field, std::vector<std::byte>* message) {
  const std::uint64_t length = field.size();
  for (const std::byte b : std::as_bytes(std::span(&length, 1)))
    message->push_back(b);
  message->insert(message->end(), field.begin(), field.end());
}

// Blocks of all sizes, so that some are longer than what is put together before it is fed.
TEST(PrefixKey, ABlocksNameIsTheDigestOfItsFieldsEachBehindItsLength) {
  constexpr std::string_view kTag = "kvrm block";
  constexpr std::uint32_t kVersion = 1;
  PrefixKey parent = {};
  for (const std::size_t block_tokens : {1u, 16u, 32u, 48u, 64u, 1024u, 16u}) {
    std::vector<std::int32_t> tokens(block_tokens);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(i * 40503);
    std::vector<std::byte> message;
    AddField(std::as_bytes(std::span(kTag)), &message);
    AddField(std::as_bytes(std::span(&kVersion, 1)), &message);
    AddField(std::as_bytes(std::span(parent.bytes)), &message);
    AddField(std::as_bytes(std::span(tokens)), &message);
    Sha256 sha;
    sha.Add(message);
    const PrefixKey key = NextPrefixKey(parent, tokens);
    EXPECT_EQ(key.bytes, sha.Finish()) << block_tokens;
    parent = key;
  }
}

}  // namespace
}  // namespace kvrm
