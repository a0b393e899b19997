// SPDX-License-Identifier: Apache-2.0
// PrefixKey: the name of a full block's content, a SHA-256 chained over everything it depends on.
//
//   root  = SHA-256("kvrm root" | version | model digest | KV layout | tenant salt)
//   key n = SHA-256("kvrm block" | version | key n-1 (root for n = 0) | number of tokens | tokens)
//
// Every field is tagged and length-prefixed, so no two different inputs are one string of bytes
// (K14). A match of keys is still confirmed by comparing the tokens themselves.
//
// Threading: pure functions. Errors: none.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "step/layout.h"

namespace kvrm {

struct PrefixKey {
  std::array<std::uint8_t, 32> bytes = {};
  friend bool operator==(const PrefixKey&, const PrefixKey&) = default;
};

// `model_digest` tells apart models, adapters included; `salt` tenants. Neither is limited.
PrefixKey PrefixRoot(std::string_view model_digest, const KvLayout& layout, std::string_view salt);
// Of a full block behind `parent`.
PrefixKey NextPrefixKey(const PrefixKey& parent, std::span<const std::int32_t> tokens) noexcept;

}  // namespace kvrm
