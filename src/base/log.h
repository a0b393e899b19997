// SPDX-License-Identifier: Apache-2.0
// Log: one line per event on stderr, `event key=value key=value`, through spdlog, set up once.
//
// Threading: any thread; lines never interleave. Values are escaped, so one event is one line
// whatever a client sent, and cut at 256 bytes. Prompts, outputs and keys are never logged: that is
// the caller's duty.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

namespace kvrm {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  LogField(std::string_view key_text, std::string_view value_text)
      : key(key_text), value(value_text) {}
  LogField(std::string_view key_text, const char* value_text) : key(key_text), value(value_text) {}
  template <std::integral Number>
  LogField(std::string_view key_text, Number number)
      : key(key_text), value(std::to_string(number)) {}

  std::string_view key;
  std::string value;
};

// `event` and the keys are words of our own: lower case, underscores.
void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// Lines below `level` are dropped; the default is kInfo.
void SetLogLevel(LogLevel level);

// The line without time and level, as Log writes it.
std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields);

}  // namespace kvrm
