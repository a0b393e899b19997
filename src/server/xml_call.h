// SPDX-License-Identifier: Apache-2.0
// Tool calls whose parameters are written as XML, as some families do inside a <tool_call>:
//
//   <function=name> <parameter=p> value </parameter> ... </function>
//   name <arg_key>p</arg_key> <arg_value>value</arg_value> ...
//
// A value is what it is as JSON where the tool's schema says that the parameter is no string; else,
// and where it is no JSON, a string. `tools` as in a request. nullopt: malformed.
//
// Pure functions.
#pragma once

#include <optional>
#include <string_view>

#include "base/json.h"
#include "server/tool_call.h"

namespace kvrm {

// One new line at either end of a value is not its own.
std::optional<ToolCall> ReadXmlCall(std::string_view text, const json::array& tools);
// Without what begins and ends the call. Values are taken to the byte.
std::optional<ToolCall> ReadArgKeyCall(std::string_view text, const json::array& tools);

}  // namespace kvrm
