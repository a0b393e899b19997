// SPDX-License-Identifier: Apache-2.0
// ApiError: what a client is told when a request cannot be served.
//
// {"error":{"message","type","param","code"}}: the type follows from the status unless one is
// given, `param` names the field at fault.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace kvrm {

struct ContextExcess {
  std::uint64_t num_prompt_tokens = 0;
  std::uint64_t max_context = 0;
};

struct ApiError {
  int status = 400;
  std::string message;
  std::string param = {};  // empty: null
  std::optional<ContextExcess> excess = {};
  std::uint32_t retry_after_s = 1;  // of 429 and 503
};

// A value or the error to answer with.
template <typename T>
using ApiResult = std::variant<T, ApiError>;

template <typename T>
const ApiError* ErrorOf(const ApiResult<T>& result) {
  return std::get_if<ApiError>(&result);
}

std::string ErrorBody(const ApiError& error);

}  // namespace kvrm
