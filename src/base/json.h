// SPDX-License-Identifier: Apache-2.0
// JSON with our limits: Boost.JSON behind one function, so depth and size are set in one place.
//
// Duplicate keys: the last one wins in Boost.JSON 1.81; callers for which that matters (tensor
// headers) must scan themselves. Depth is bounded, so copies and destructors may recurse.
#pragma once

#include <boost/json/value.hpp>
#include <cstddef>
#include <string_view>

#include "base/result.h"

namespace kvrm {

namespace json = boost::json;

struct JsonLimits {
  std::size_t max_bytes = 8u << 20;
  std::size_t max_depth = 64;
};

// Parses exactly one JSON text. The error names the byte offset and what is wrong.
Result<json::value> ParseJson(std::string_view text, const JsonLimits& limits = {});

}  // namespace kvrm
