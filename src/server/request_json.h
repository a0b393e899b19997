// SPDX-License-Identifier: Apache-2.0
// Request bodies as JSON, with limits a stranger's text needs: at most 200,000 values, depth 64,
// and no object that says a thing twice, for then two readers may read two things.
//
// Threading: pure functions. Memory: in proportion to the text.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace kvrm {

inline constexpr std::size_t kMaxRequestValues = 200000;

Result<json::value> ParseRequestJson(std::string_view text);

}  // namespace kvrm
