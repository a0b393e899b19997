// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value or an Error, for everything the outside world can get wrong.
//
// Three ways to fail, no fourth (docs/style.md): a bug is a CHECK; a start-up that cannot succeed
// throws StartError, caught in main only; while serving, failure is a value of this type.
// The member names are those of std::expected, so one alias can replace this file later.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace kvrm {

enum class ErrorCode {
  kInvalidArgument,  // The input is wrong; the message names the field and the limit.
  kUnsupported,      // Well formed, but not something this program runs; named, never guessed.
  kNotFound,
  kTooLarge,    // Longer than a stated limit.
  kOverloaded,  // A queue or pool is full; try later.
  kIo,          // The operating system said no.
  kInternal,
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;  // One line, no trailing period, names the field and the limit.
};

// Start-up failure: main prints the message and exits with 2.
class StartError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  // Requires: has_value().
  T& value() & { return Get(); }
  const T& value() const& { return const_cast<Result*>(this)->Get(); }
  T&& value() && { return std::move(Get()); }
  T& operator*() & { return Get(); }
  const T& operator*() const& { return const_cast<Result*>(this)->Get(); }
  T&& operator*() && { return std::move(Get()); }
  T* operator->() { return &Get(); }
  const T* operator->() const { return &const_cast<Result*>(this)->Get(); }

  // Requires: !has_value().
  const Error& error() const {
    KVRM_CHECK(!has_value());
    return *std::get_if<1>(&state_);
  }

 private:
  T& Get() {
    KVRM_CHECK(has_value());
    return *std::get_if<0>(&state_);
  }
  std::variant<T, Error> state_;
};

// The result of an action that yields nothing but success.
struct Done {};
using Status = Result<Done>;

// Start-up code only: turns an error into StartError.
template <typename T>
T OrThrow(Result<T> result) {
  if (!result) throw StartError(result.error().message);
  return std::move(result).value();
}

}  // namespace kvrm
