// SPDX-License-Identifier: Apache-2.0
#include "cli/config.h"

#include <unistd.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace kvrm {
namespace {

constexpr std::string_view kPrefix = "KVRM_ARG_";
constexpr std::uint64_t kMaxConfigFileBytes = 1u << 20;

struct Setting {
  std::string flag;
  std::vector<std::string> values;
};

std::string_view Trim(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_blank(text.front()))
    text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back()))
    text.remove_suffix(1);
  return text;
}

// Takes one value from the front of `text`; nullopt when there is none.
std::optional<std::string> TakeValue(std::string_view& text) {
  text = Trim(text);
  if (text.empty()) return std::nullopt;
  const char quote = text.front();
  if (quote != '"' && quote != '\'') {
    std::size_t end = 0;
    while (end < text.size() && std::string_view(",] \t#\"'").find(text[end]) == std::string::npos)
      ++end;
    if (end == 0) return std::nullopt;
    std::string value(text.substr(0, end));
    text.remove_prefix(end);
    return value;
  }
  std::string value;
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (text[i] == quote) {
      text.remove_prefix(i + 1);
      return value;
    }
    if (text[i] == '\\' && quote == '"') {
      if (++i == text.size() || (text[i] != '"' && text[i] != '\\')) return std::nullopt;
    }
    value += text[i];
  }
  return std::nullopt;
}

bool IsEnd(std::string_view rest) {
  rest = Trim(rest);
  return rest.empty() || rest.front() == '#';
}

std::optional<std::vector<std::string>> ParseValues(std::string_view text) {
  text = Trim(text);
  std::vector<std::string> values;
  if (!text.starts_with('[')) {
    const std::optional<std::string> value = TakeValue(text);
    if (!value || !IsEnd(text)) return std::nullopt;
    values.push_back(*value);
    return values;
  }
  text.remove_prefix(1);
  for (;;) {
    text = Trim(text);
    if (text.starts_with(']')) break;
    const std::optional<std::string> value = TakeValue(text);
    if (!value) return std::nullopt;
    values.push_back(*value);
    text = Trim(text);
    if (text.starts_with(',')) {
      text.remove_prefix(1);
    } else if (!text.starts_with(']')) {
      return std::nullopt;
    }
  }
  text.remove_prefix(1);
  if (!IsEnd(text) || values.empty()) return std::nullopt;
  return values;
}

// nullopt: a blank line, a comment, or the header of the command's own table.
std::optional<Setting> ParseLine(std::string_view line, const std::string& command,
                                 const std::string& where) {
  line = Trim(line);
  if (IsEnd(line)) return std::nullopt;
  if (line.front() == '[') {
    if (line == "[" + command + "]") return std::nullopt;
    throw StartError(where + ": the only table is [" + command + "]");
  }
  const std::size_t equals = line.find('=');
  if (equals == std::string_view::npos) throw StartError(where + ": not `flag = value`");
  Setting setting{.flag = std::string(Trim(line.substr(0, equals))), .values = {}};
  std::optional<std::vector<std::string>> values = ParseValues(line.substr(equals + 1));
  if (!values) throw StartError(where + ": " + setting.flag + ": not a value, or not only one");
  setting.values = *std::move(values);
  return setting;
}

// Gives the flag these values unless a stronger source has.
void Apply(CLI::App& command, const Setting& setting, const std::string& where) {
  CLI::Option* option = command.get_option_no_throw("--" + setting.flag);
  if (option == nullptr || setting.flag == "help") {
    throw StartError(where + ": kvrm " + command.get_name() + " has no flag --" + setting.flag);
  }
  if (option->count() > 0) return;
  for (const CLI::Option* other : option->get_excludes()) {
    if (other->count() > 0) {
      throw StartError(where + ": --" + setting.flag + " excludes " + other->get_name());
    }
  }
  try {
    option->add_result(setting.values);
    option->run_callback();
  } catch (const CLI::ParseError& error) {
    throw StartError(where + ": --" + setting.flag + ": " + error.what());
  }
}

void ApplyFile(CLI::App& command, const std::string& path) {
  const std::string text = OrThrow(ReadFile(path, kMaxConfigFileBytes));
  std::string_view rest = text;
  std::vector<std::string> seen;
  for (int number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    const std::string where = path + ":" + std::to_string(number);
    const std::optional<Setting> setting = ParseLine(line, command.get_name(), where);
    if (!setting) continue;
    if (setting->flag == "config") throw StartError(where + ": a file names no other file");
    if (std::find(seen.begin(), seen.end(), setting->flag) != seen.end()) {
      throw StartError(where + ": " + setting->flag + " is set twice");
    }
    seen.push_back(setting->flag);
    Apply(command, *setting, where);
  }
}

void ApplyEnvironment(CLI::App& command) {
  // After clearenv there is no array either.
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (!text.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    const std::string name(text.substr(0, equals));
    Setting setting{.flag = name.substr(kPrefix.size()),
                    .values = {std::string(text.substr(equals + 1))}};
    for (char& c : setting.flag)
      c = c == '_' ? '-' : (c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
    Apply(command, setting, name);
  }
}

}  // namespace

void AddConfigSources(CLI::App& command) {
  CLI::Option* config =
      command
          .add_option("--config",
                      "file of `flag = value` lines; the command line and KVRM_ARG_<FLAG> "
                      "in the environment win over it")
          ->group("Help and configuration");
  command.get_help_ptr()->group("Help and configuration");
  command.parse_complete_callback([&command, config] {
    ApplyEnvironment(command);
    if (config->count() > 0) ApplyFile(command, config->as<std::string>());
  });
}

}  // namespace kvrm
