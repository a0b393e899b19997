// SPDX-License-Identifier: Apache-2.0
// JSON schema to grammar (draft 2020-12, and what of older drafts means the same).
//
// Every text of the grammar is valid under the schema; not every valid text is in it. Properties
// come in the schema's order, an object has no others unless additionalProperties asks for them,
// oneOf is anyOf, spaces are as JsonParts has them, and where `type` is absent the other keywords
// say which types are meant. Keywords that decide what is valid and are not understood are refused
// by name. docs/http_api.md lists what is understood.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/result.h"
#include "grammar/ast.h"

namespace kvrm::grammar {

constexpr std::size_t kMaxSchemaBytes = 64u << 10;

// Defines ast.root. Errors begin with "json_schema: " and name keyword and place.
Status ParseJsonSchema(std::string_view text, Ast& ast);
// Any object.
void DefineJsonObject(Ast& ast);

}  // namespace kvrm::grammar
