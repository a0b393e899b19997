// SPDX-License-Identifier: Apache-2.0
#include "base/json.h"

#include <boost/json/src.hpp>
#include <string>

namespace kvrm {

Result<json::value> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Error{ErrorCode::kTooLarge, "JSON text has " + std::to_string(text.size()) +
                                           " bytes; the limit is " +
                                           std::to_string(limits.max_bytes)};
  }
  json::parse_options options;
  options.max_depth = limits.max_depth;
  json::stream_parser parser({}, options);
  boost::system::error_code code;
  const std::size_t consumed = parser.write_some(text, code);
  std::size_t end = consumed;
  while (!code && end < text.size() &&
         (text[end] == ' ' || text[end] == '\n' || text[end] == '\r' || text[end] == '\t')) {
    ++end;
  }
  if (!code) parser.finish(code);
  if (!code && end != text.size()) code = json::error::extra_data;
  if (code) {
    return Error{ErrorCode::kInvalidArgument,
                 "invalid JSON at byte " + std::to_string(end) + ": " + code.message()};
  }
  return parser.release();
}

}  // namespace kvrm
