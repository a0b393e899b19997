// SPDX-License-Identifier: Apache-2.0
// JsonFields: typed, ranged access to one JSON object, remembering the first thing that was wrong
// and which names nobody asked for.
//
// A null value counts as absent, as clients send it. After the first error every getter still
// returns something harmless; the caller looks at error() once, at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/api_error.h"

namespace kvrm {

class JsonFields {
 public:
  explicit JsonFields(const json::object& object) : object_(&object) {}

  // The value, or nullptr when absent or null. Marks the name as known.
  const json::value* Get(std::string_view name);
  std::optional<double> Number(std::string_view name, double low, double high);
  std::optional<std::int64_t> Integer(std::string_view name, std::int64_t low, std::int64_t high);
  std::optional<bool> Bool(std::string_view name);
  std::optional<std::string_view> String(std::string_view name);
  const json::array* Array(std::string_view name, std::size_t max_items);
  const json::object* Object(std::string_view name);

  void Fail(std::string_view name, std::string message);
  // Names that no getter asked for, each cut to 64 bytes, at most `max_names`.
  std::vector<std::string> Unknown(std::size_t max_names) const;
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const json::object* object_;
  std::vector<std::string> known_;  // callers' names may be temporaries
  std::optional<ApiError> error_;
};

// A 64-bit integer written as one; nullopt for everything else, 1.0 included.
std::optional<std::int64_t> ExactInteger(const json::value& value);

}  // namespace kvrm
