// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace kvrm {

inline constexpr std::string_view kVersion = "0.1.0";
// Clients compare it between replies; it changes when outputs may.
inline constexpr std::string_view kFingerprint = "kvrm-0.1.0";

}  // namespace kvrm
