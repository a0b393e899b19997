// SPDX-License-Identifier: Apache-2.0
// The small words of HTTP answers: reasons, dates, what a field may hold.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm {

const char* HttpReason(int status);
// As in the Date field.
std::string HttpDate(std::int64_t unix_seconds);
// Whether the value cannot end its line.
bool IsFieldValue(std::string_view value);

}  // namespace kvrm
