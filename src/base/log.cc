// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>

namespace kvrm {
namespace {

constexpr std::size_t kMaxValueBytes = 256;

spdlog::level::level_enum SpdLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      break;
  }
  return spdlog::level::err;
}

spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    // Never destroyed: a thread that still logs while the program exits finds it alive.
    auto* made = new spdlog::logger("kvrm", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
    return made;
  }();
  return *logger;
}

bool IsPlain(char c) {
  return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '=';
}

void AppendValue(std::string& line, std::string_view value) {
  const bool cut = value.size() > kMaxValueBytes;
  value = value.substr(0, kMaxValueBytes);
  bool plain = !value.empty();
  for (const char c : value)
    plain = plain && IsPlain(c);
  if (plain) {
    line += value;
  } else {
    static constexpr char kHex[] = "0123456789abcdef";
    line += '"';
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        line += '\\';
        line += c;
      } else if (byte < 0x20 || byte >= 0x7f) {
        line += "\\x";
        line += kHex[byte >> 4];
        line += kHex[byte & 15];
      } else {
        line += c;
      }
    }
    line += '"';
  }
  if (cut) line += "...";
}

}  // namespace

std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields) {
  std::string line(event);
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    AppendValue(line, field.value);
  }
  return line;
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(SpdLevel(level))) return;
  logger.log(SpdLevel(level), spdlog::string_view_t(FormatLogLine(event, fields)));
}

void SetLogLevel(LogLevel level) {
  Logger().set_level(SpdLevel(level));
}

}  // namespace kvrm
