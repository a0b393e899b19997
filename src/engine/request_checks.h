// SPDX-License-Identifier: Apache-2.0
// What of a request an engine refuses, whatever else it holds. Pure functions; each error names
// the field and the limit.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "engine/request.h"

namespace kvrm {

std::optional<Error> ErrorIn(const SamplingParams& sampling);
std::optional<Error> ErrorIn(const LogitRules& rules, std::uint32_t vocab_size);
// In what is wanted beside the tokens.
std::optional<Error> ErrorInResults(const Request& request);

}  // namespace kvrm
