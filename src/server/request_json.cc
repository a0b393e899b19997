// SPDX-License-Identifier: Apache-2.0
#include "server/request_json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <string>
#include <vector>

namespace kvrm {
namespace {

using ErrorCodeOf = boost::system::error_code;

// Looks at a text without keeping its values: how many there are, and the keys of open objects.
class Scan {
 public:
  static constexpr std::size_t max_object_size = kMaxRequestValues;
  static constexpr std::size_t max_array_size = kMaxRequestValues;
  static constexpr std::size_t max_key_size = 8u << 20;
  static constexpr std::size_t max_string_size = 8u << 20;

  bool on_document_begin(ErrorCodeOf&) { return true; }
  bool on_document_end(ErrorCodeOf&) { return true; }
  bool on_object_begin(ErrorCodeOf& error) {
    first_keys_.push_back(keys_.size());
    return CountValue(error);
  }
  bool on_object_end(std::size_t, ErrorCodeOf& error) {
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(first_keys_.back());
    std::sort(first, keys_.end());
    const auto twice = std::adjacent_find(first, keys_.end());
    if (twice != keys_.end())
      return Fail(error, "an object has the key " + Short(*twice) + " twice");
    keys_.erase(first, keys_.end());
    first_keys_.pop_back();
    return true;
  }
  bool on_array_begin(ErrorCodeOf& error) { return CountValue(error); }
  bool on_array_end(std::size_t, ErrorCodeOf&) { return true; }
  bool on_key_part(json::string_view part, std::size_t, ErrorCodeOf&) {
    key_.append(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, std::size_t, ErrorCodeOf&) {
    key_.append(part.data(), part.size());
    keys_.push_back(std::move(key_));
    key_.clear();
    return true;
  }
  bool on_string_part(json::string_view, std::size_t, ErrorCodeOf&) { return true; }
  bool on_string(json::string_view, std::size_t, ErrorCodeOf& error) { return CountValue(error); }
  bool on_number_part(json::string_view, ErrorCodeOf&) { return true; }
  bool on_int64(std::int64_t, json::string_view, ErrorCodeOf& error) { return CountValue(error); }
  bool on_uint64(std::uint64_t, json::string_view, ErrorCodeOf& error) { return CountValue(error); }
  bool on_double(double, json::string_view, ErrorCodeOf& error) { return CountValue(error); }
  bool on_bool(bool, ErrorCodeOf& error) { return CountValue(error); }
  bool on_null(ErrorCodeOf& error) { return CountValue(error); }
  bool on_comment_part(json::string_view, ErrorCodeOf&) { return true; }
  bool on_comment(json::string_view, ErrorCodeOf&) { return true; }

  const std::string& failure() const { return failure_; }

 private:
  static std::string Short(const std::string& key) {
    std::string shown = "\"";
    for (const char c : key.substr(0, 64))
      shown += c >= ' ' && c < 0x7f ? c : '?';
    return shown + '"';
  }
  bool CountValue(ErrorCodeOf& error) {
    if (++num_values_ <= kMaxRequestValues) return true;
    return Fail(error,
                "the JSON text has more than " + std::to_string(kMaxRequestValues) + " values");
  }
  bool Fail(ErrorCodeOf& error, std::string failure) {
    failure_ = std::move(failure);
    error = json::error::syntax;  // Any: it only stops the parser.
    return false;
  }

  std::size_t num_values_ = 0;
  std::string key_;
  std::vector<std::string> keys_;        // of all open objects, in the order of their opening
  std::vector<std::size_t> first_keys_;  // where each open object's begin
  std::string failure_;
};

}  // namespace

Result<json::value> ParseRequestJson(std::string_view text) {
  constexpr JsonLimits kLimits;
  if (text.size() <= kLimits.max_bytes) {
    json::parse_options options;
    options.max_depth = kLimits.max_depth;
    json::basic_parser<Scan> scan(options);
    ErrorCodeOf error;
    scan.write_some(false, text.data(), text.size(), error);
    if (!scan.handler().failure().empty()) {
      return Error{ErrorCode::kInvalidArgument, scan.handler().failure()};
    }
  }
  // Whatever else is wrong with it is said by the parser that keeps the values.
  return ParseJson(text);
}

}  // namespace kvrm
