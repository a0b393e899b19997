// SPDX-License-Identifier: Apache-2.0
// The tools of a chat request, and messages that carry calls and their results. Pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/json_fields.h"
#include "server/tool_call.h"

namespace kvrm {

inline constexpr std::size_t kMaxTools = 128;

struct ToolFields {
  enum class Choice { kNone, kAuto, kRequired, kNamed };
  json::array tools;               // as given; empty: none
  std::vector<std::string> names;  // of these
  Choice choice = Choice::kAuto;
  std::string named;  // kNamed: one of `names`
  bool parallel = true;
};
ToolFields ReadTools(JsonFields& fields);

// What a forced call must look like: an array of {"name", "parameters"}, or the one function's
// parameters. Requires: kRequired or kNamed.
GrammarSpec ForcedCallGrammar(const ToolFields& tools);

// A message's tool_calls, checked; arguments that are a JSON object as text become the object, as
// templates expect it. False: they are malformed. Adds its bytes of text.
bool ReadMessageCalls(json::object& message, std::size_t* num_bytes);

// For templates that know nothing of tools: what the model is told instead, in the system message.
std::string ToolInstructions(const json::array& tools);

}  // namespace kvrm
