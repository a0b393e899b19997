// SPDX-License-Identifier: Apache-2.0
// Random JSON schemas for tests, and a validator that shares nothing with what compiles them.
#pragma once

#include <string>

#include "base/json.h"
#include "base/rng.h"

namespace kvrm {

// Within what is supported, satisfiable, some with recursion.
json::value RandomSchema(Rng& rng);
std::string SchemaText(const json::value& schema);

// As the draft says, but oneOf as anyOf. Knows the patterns and formats that RandomSchema writes.
bool IsValid(const json::value& root, const json::value& schema, const json::value& value);

}  // namespace kvrm
