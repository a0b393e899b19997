// SPDX-License-Identifier: Apache-2.0
// Log: one line per event on stderr, through spdlog, set up once.
//
//   text   2026-01-31T12:00:00.123+0000 info request id=req-1 status=200
//   JSON
//   {"time":"2026-01-31T12:00:00.123Z","level":"info","event":"request","id":"req-1","status":200}
//
// Threading: any thread; lines never interleave. Values are escaped, so one event is one line
// whatever a client sent, and cut at 256 bytes. Prompts, outputs and keys are never logged: that is
// the caller's duty. Warnings and errors: 20 of one event in 5 s; the next says how many were left
// out. Lines that stderr has no room for are dropped and counted; nobody waits.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace kvrm {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogField {
  LogField(std::string_view key_text, std::string_view value_text)
      : key(key_text), value(value_text) {}
  LogField(std::string_view key_text, const char* value_text) : key(key_text), value(value_text) {}
  template <std::integral Number>
  LogField(std::string_view key_text, Number number)
      : key(key_text), value(std::to_string(number)), is_number(true) {}

  std::string_view key;
  std::string value;
  bool is_number = false;
};

// `event` and the keys are words of our own: lower case, underscores. `event` is a literal.
void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// Lines below `level` are dropped; the default is kInfo.
void SetLogLevel(LogLevel level);
// "debug", "info", "warning" or "error".
std::optional<LogLevel> FindLogLevel(std::string_view name);
// Before threads log; the default is kText.
void SetLogFormat(LogFormat format);

// The line without time and level, as Log writes it: for JSON the object's members after them.
std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields,
                          LogFormat format = LogFormat::kText);

// Counts lines of one event in a window of time, for Log.
class LogLimiter {
 public:
  // Whether the line is written; `*num_left_out` gets how many of this event were not, since its
  // last one.
  bool Admit(std::int64_t now_ns, std::uint64_t* num_left_out);

 private:
  std::int64_t window_begin_ns_ = INT64_MIN;
  std::uint32_t num_in_window_ = 0;
  std::uint64_t num_left_out_ = 0;
};

}  // namespace kvrm
