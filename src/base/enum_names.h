// SPDX-License-Identifier: Apache-2.0
// FindByName: the enumerator whose name, at its own number in `names`, is `name`.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace kvrm {

template <typename Enum, std::size_t count>
std::optional<Enum> FindByName(const std::array<const char*, count>& names, std::string_view name) {
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end()) return std::nullopt;
  return static_cast<Enum>(at - names.begin());
}

}  // namespace kvrm
