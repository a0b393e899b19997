// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <poll.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "base/clock.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxValueBytes = 256;
constexpr std::uint32_t kMaxLinesInWindow = 20;
constexpr std::int64_t kWindowNs = 5'000'000'000;
constexpr char kHex[] = "0123456789abcdef";
constexpr const char* kLevelNames[] = {"debug", "info", "warning", "error"};

std::atomic<LogFormat> log_format{LogFormat::kText};

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

// Bytes that are not printable ASCII as \u00xx: one line, and JSON whatever they were.
void AppendJsonString(std::string& line, std::string_view value) {
  const bool cut = value.size() > kMaxValueBytes;
  line += '"';
  for (const char c : value.substr(0, kMaxValueBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      line += '\\';
      line += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      line += "\\u00";
      line += kHex[byte >> 4];
      line += kHex[byte & 15];
    } else {
      line += c;
    }
  }
  line += cut ? "...\"" : "\"";
}

void AppendField(std::string& line, const LogField& field, LogFormat format) {
  if (format == LogFormat::kText) {
    line += ' ';
    line += field.key;
    line += '=';
    AppendValue(line, field.value);
    return;
  }
  line += ",\"";
  line += field.key;
  line += "\":";
  if (field.is_number) {
    line += field.value;
  } else {
    AppendJsonString(line, field.value);
  }
}

// By event; events are literals of the program, so the table is bounded.
bool Admit(std::string_view event, std::uint64_t* num_left_out) {
  static std::mutex mutex;
  static auto* const limiters = new std::map<std::string_view, LogLimiter>();
  const std::lock_guard lock(mutex);
  return (*limiters)[event].Admit(SystemClock().NowNs(), num_left_out);
}

// Whether a line goes to stderr without waiting: a pipe says so while it has room for PIPE_BUF
// bytes, which is more than any line has.
bool HasRoom() {
  pollfd standard_error{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  return ::poll(&standard_error, 1, 0) != 0;
}

}  // namespace

std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields,
                          LogFormat format) {
  std::string line;
  if (format == LogFormat::kText) {
    line = event;
  } else {
    line = ",\"event\":";
    AppendJsonString(line, event);
  }
  for (const LogField& field : fields)
    AppendField(line, field, format);
  return line;
}

bool LogLimiter::Admit(std::int64_t now_ns, std::uint64_t* num_left_out) {
  if (window_begin_ns_ == INT64_MIN || now_ns - window_begin_ns_ >= kWindowNs) {
    window_begin_ns_ = now_ns;
    num_in_window_ = 0;
  }
  if (num_in_window_ == kMaxLinesInWindow) {
    ++num_left_out_;
    return false;
  }
  ++num_in_window_;
  *num_left_out = num_left_out_;
  num_left_out_ = 0;
  return true;
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(SpdLevel(level))) return;
  // A reader of the log that has stopped must not stop the threads that serve.
  static std::atomic<std::uint64_t> num_dropped{0};
  if (!HasRoom()) {
    num_dropped.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  std::uint64_t num_left_out = 0;
  if (level >= LogLevel::kWarning && !Admit(event, &num_left_out)) return;
  const LogFormat format = log_format.load(std::memory_order_relaxed);
  std::string line = FormatLogLine(event, fields, format);
  if (num_left_out > 0) AppendField(line, {"left_out", num_left_out}, format);
  const std::uint64_t dropped = num_dropped.exchange(0, std::memory_order_relaxed);
  if (dropped > 0) AppendField(line, {"dropped", dropped}, format);
  if (format == LogFormat::kJson) line += '}';
  logger.log(SpdLevel(level), spdlog::string_view_t(line));
}

void SetLogLevel(LogLevel level) {
  Logger().set_level(SpdLevel(level));
}

std::optional<LogLevel> FindLogLevel(std::string_view name) {
  for (int level = 0; level < 4; ++level) {
    if (name == kLevelNames[level]) return static_cast<LogLevel>(level);
  }
  return std::nullopt;
}

void SetLogFormat(LogFormat format) {
  log_format = format;
  if (format == LogFormat::kJson) {
    Logger().set_pattern("{\"time\":\"%Y-%m-%dT%H:%M:%S.%eZ\",\"level\":\"%l\"%v",
                         spdlog::pattern_time_type::utc);
  }
}

}  // namespace kvrm
