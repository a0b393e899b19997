// SPDX-License-Identifier: Apache-2.0
// Any command line, environment, configuration file and key file of kvrm serve: flags within their
// limits, or an error of the two kinds that main answers with one line. What the environment gives,
// a file that says the same gives as well.
//
// The input's lines: `>` begins an argument, `$` a variable without its KVRM_ARG_, `!` a line of
// the key file; all others are the configuration file. Run with -max_len=4096.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/result.h"
#include "cli/config.h"
#include "cli/serve_flags.h"
#include "server/keys.h"

namespace kvrm {
namespace {

struct Input {
  std::vector<std::string> arguments;
  std::vector<std::pair<std::string, std::string>> variables;
  std::string config;
  std::string keys;
};

// A file without a name in any folder, readable by its path while this lives.
class NamelessFile {
 public:
  explicit NamelessFile(std::string_view text)
      : fd_(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)) {
    CHECK(fd_ >= 0);
    CHECK(::write(fd_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  ~NamelessFile() { ::close(fd_); }
  NamelessFile(const NamelessFile&) = delete;
  NamelessFile& operator=(const NamelessFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  const int fd_;
};

Input Divide(std::string_view text) {
  Input input;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string rest(line.empty() ? line : line.substr(1));
    if (line.starts_with('>')) {
      input.arguments.push_back(rest);
    } else if (line.starts_with('$') && rest.find('=') != std::string::npos &&
               rest.find('\0') == std::string::npos) {
      const std::size_t equals = rest.find('=');
      input.variables.emplace_back(rest.substr(0, equals), rest.substr(equals + 1));
    } else if (line.starts_with('!')) {
      input.keys += rest + "\n";
    } else {
      input.config += std::string(line) + "\n";
    }
  }
  return input;
}

void CheckLimits(const ServeFlags& flags) {
  const HttpOptions& http = flags.server.http;
  CHECK(http.parser.max_body_bytes >= 1024 && http.parser.max_body_bytes <= 64u << 20);
  CHECK(http.max_connections >= 1 && http.max_connections <= 1'000'000);
  for (const std::int64_t ms : {http.head_ms, http.body_ms, http.send_ms, http.keep_alive_ms})
    CHECK(ms >= 1000 && ms <= 86'400'000);
  CHECK(flags.drain_seconds <= 86400);
  CHECK(flags.engine.max_rows >= 1 && flags.engine.max_rows <= 1024);
  CHECK(flags.engine.max_queued >= 1 && flags.engine.max_queued <= 65536);
  CHECK(flags.engine.max_wait_ms <= 86'400'000);
  CHECK(flags.engine.max_runs >= 2 && flags.engine.max_runs <= 65536);
  CHECK(flags.model.path.empty() || flags.model.dummy.empty());
}

// What every flag was given, or nothing where it was refused.
using Given = std::optional<std::map<std::string, std::vector<std::string>>>;

Given Parse(const Input& input) {
  ::clearenv();
  for (const auto& [name, value] : input.variables)
    ::setenv(("KVRM_ARG_" + name).c_str(), value.c_str(), 1);
  const NamelessFile config(input.config);
  ServeFlags flags;
  CLI::App app("", "kvrm");
  CLI::App* const command = app.add_subcommand("serve");
  AddServeFlags(*command, &flags);
  AddConfigSources(*command);
  std::vector<std::string> arguments = {"serve", "--config", config.path()};
  arguments.insert(arguments.end(), input.arguments.begin(), input.arguments.end());
  std::reverse(arguments.begin(), arguments.end());  // as parse takes them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    CHECK(*error.what() != '\0');
    return std::nullopt;
  } catch (const StartError& error) {
    CHECK(*error.what() != '\0');
    return std::nullopt;
  }
  CheckLimits(flags);
  Given given(std::in_place);
  for (const CLI::Option* option : command->get_options()) {
    if (!option->check_name("--config")) (*given)[option->get_name()] = option->results();
  }
  return given;
}

// The environment's settings as lines of the file; nothing where that cannot be: names that are not
// of a flag's letters or come twice, and another file.
std::optional<Input> AsFile(const Input& input) {
  Input other;
  std::map<std::string, int> seen;
  for (const auto& [name, value] : input.variables) {
    std::string flag;
    for (const char c : name) {
      if ((c < 'A' || c > 'Z') && c != '_') return std::nullopt;
      flag += c == '_' ? '-' : static_cast<char>(c - 'A' + 'a');
    }
    if (flag.empty() || flag == "config" || seen[flag]++ > 0) return std::nullopt;
    other.config += flag + " = \"";
    for (const char c : value)
      other.config += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    other.config += "\"\n";
  }
  return other;
}

void ReadKeys(const std::string& text) {
  const NamelessFile file(text);
  try {
    const std::vector<std::string> keys = ReadKeyFile(file.path());
    const KeySet set(keys);
    CHECK(!set.empty() && set.size() <= keys.size());
    for (const std::string& key : keys)
      CHECK(set.Find(key));
    CHECK(!set.Find(""));
  } catch (const StartError& error) {
    CHECK(*error.what() != '\0');
  }
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const kvrm::Input input = kvrm::Divide({reinterpret_cast<const char*>(data), size});
  kvrm::Parse(input);
  if (!input.keys.empty()) kvrm::ReadKeys(input.keys);
  if (const std::optional<kvrm::Input> file = kvrm::AsFile(input)) {
    kvrm::Input environment;
    environment.variables = input.variables;
    CHECK(kvrm::Parse(environment) == kvrm::Parse(*file));
  }
  return 0;
}
