// SPDX-License-Identifier: Apache-2.0
// Unicode normalisation form C, for tokenizers that ask for it.
//
// O(n log n) in bytes. Bytes that are not UTF-8 are kept as they are. Stateless.
#pragma once

#include <string>
#include <string_view>

namespace kvrm {

std::string ComposeNfc(std::string_view text);

}  // namespace kvrm
