// SPDX-License-Identifier: Apache-2.0
#include "server/json_fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace kvrm {
namespace {

std::string Shortest(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return std::string(text, end);
}

}  // namespace

std::optional<std::int64_t> ExactInteger(const json::value& value) {
  if (const std::int64_t* exact = value.if_int64()) return *exact;
  return std::nullopt;
}

const json::value* JsonFields::Get(std::string_view name) {
  known_.emplace_back(name);
  const json::value* value = object_->if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void JsonFields::Fail(std::string_view name, std::string message) {
  if (error_) return;
  error_ = ApiError{.status = 400, .message = std::move(message), .param = std::string(name)};
}

std::optional<double> JsonFields::Number(std::string_view name, double low, double high) {
  const json::value* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Fail(name, std::string(name) + " must be a number");
    return std::nullopt;
  }
  const double number = value->to_number<double>();
  if (!std::isfinite(number) || number < low || number > high) {
    Fail(name, std::string(name) + " must be between " + Shortest(low) + " and " + Shortest(high));
    return std::nullopt;
  }
  return number;
}

std::optional<std::int64_t> JsonFields::Integer(std::string_view name, std::int64_t low,
                                                std::int64_t high) {
  const json::value* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_int64() && !value->is_uint64()) {
    Fail(name, std::string(name) + " must be an integer");
    return std::nullopt;
  }
  // An unsigned value here is above 2^63 - 1, so above every limit.
  const std::optional<std::int64_t> number = ExactInteger(*value);
  if (!number || *number < low || *number > high) {
    Fail(name, std::string(name) + " must be between " + std::to_string(low) + " and " +
                   std::to_string(high));
    return std::nullopt;
  }
  return number;
}

std::optional<bool> JsonFields::Bool(std::string_view name) {
  const json::value* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) {
    Fail(name, std::string(name) + " must be true or false");
    return std::nullopt;
  }
  return value->get_bool();
}

std::optional<std::string_view> JsonFields::String(std::string_view name) {
  const json::value* value = Get(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, std::string(name) + " must be a string");
    return std::nullopt;
  }
  return std::string_view(value->get_string());
}

const json::array* JsonFields::Array(std::string_view name, std::size_t max_items) {
  const json::value* value = Get(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    Fail(name, std::string(name) + " must be an array");
    return nullptr;
  }
  if (value->get_array().size() > max_items) {
    Fail(name, std::string(name) + " has more than " + std::to_string(max_items) + " items");
    return nullptr;
  }
  return &value->get_array();
}

const json::object* JsonFields::Object(std::string_view name) {
  const json::value* value = Get(name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    Fail(name, std::string(name) + " must be an object");
    return nullptr;
  }
  return &value->get_object();
}

std::vector<std::string> JsonFields::Unknown(std::size_t max_names) const {
  std::vector<std::string> names;
  for (const auto& member : *object_) {
    const std::string_view name = member.key();
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    if (names.size() == max_names) break;
    names.emplace_back(name.substr(0, 64));
  }
  return names;
}

}  // namespace kvrm
