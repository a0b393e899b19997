// SPDX-License-Identifier: Apache-2.0
// A tool call whose parameters are written as XML, as some families do inside a <tool_call>:
//
//   <function=name> <parameter=p> value </parameter> ... </function>
//
// Pure function.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace kvrm {

struct XmlCall {
  std::string name;
  std::string arguments;  // a JSON object
};

// One new line at either end of a value is not its own. A value is what it is as JSON where the
// tool's schema says that the parameter is no string; else, and where it is no JSON, a string.
// `tools` as in a request. nullopt: malformed.
std::optional<XmlCall> ReadXmlCall(std::string_view text, const json::array& tools);

}  // namespace kvrm
