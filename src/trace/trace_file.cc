// SPDX-License-Identifier: Apache-2.0
#include "trace/trace_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <utility>

#include "base/file.h"
#include "base/json.h"

namespace kvrm {
namespace {

constexpr const char* kFormatNames[] = {"azure", "burstgpt", "mooncake"};
constexpr std::int64_t kNsPerS = 1'000'000'000;
constexpr std::size_t kMaxColumns = 64;

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t'))
    text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r'))
    text.remove_suffix(1);
  return text;
}

std::string_view TakeLine(std::string_view* text) {
  const std::size_t end = text->find('\n');
  const std::string_view line = text->substr(0, end);
  text->remove_prefix(end == std::string_view::npos ? text->size() : end + 1);
  return Trim(line);
}

// Where a field stands, for errors.
struct Place {
  std::uint64_t line = 0;
  const char* field = "";
};

Error Bad(const Place& place, const std::string& what) {
  return {ErrorCode::kInvalidArgument,
          "line " + std::to_string(place.line) + ": " + place.field + " " + what};
}

std::string Shown(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 40))
    shown += c >= ' ' && c < 0x7f ? c : '?';
  return "'" + shown + "'";
}

// Digits only, up to `limit`.
std::optional<std::int64_t> Digits(std::string_view text, std::int64_t limit) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.front() == '-' ||
      value > limit) {
    return std::nullopt;
  }
  return value;
}

Result<std::uint32_t> Tokens(std::string_view text, const Place& place) {
  // BurstGPT's later files have "12.0" in places.
  if (text.ends_with(".0")) text.remove_suffix(2);
  const std::optional<std::int64_t> value = Digits(text, kMaxTraceTokens);
  if (!value) {
    return Bad(place, "is no number of tokens from 0 to " + std::to_string(kMaxTraceTokens) + ": " +
                          Shown(text));
  }
  return static_cast<std::uint32_t>(*value);
}

// "12", "12.5": ns; digits beyond the ninth are cut.
std::optional<std::int64_t> SecondsToNs(std::string_view text) {
  const std::size_t point = text.find('.');
  const std::optional<std::int64_t> whole =
      Digits(text.substr(0, point), kMaxTraceNs / kNsPerS - 1);
  if (!whole) return std::nullopt;
  std::int64_t ns = *whole * kNsPerS;
  if (point == std::string_view::npos) return ns;
  std::int64_t unit = kNsPerS;
  for (const char c : text.substr(point + 1)) {
    if (c < '0' || c > '9') return std::nullopt;
    unit /= 10;
    ns += unit * (c - '0');
  }
  return ns;
}

// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's days_from_civil).
std::int64_t DaysFromCivil(std::int64_t year, std::int64_t month, std::int64_t day) {
  year -= month <= 2 ? 1 : 0;
  const std::int64_t era = year / 400;
  const std::int64_t year_of_era = year - era * 400;
  const std::int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
         719468;
}

// "2023-11-16 18:17:03.9799600", with an offset of zero behind it or none: ns since 2000-01-01.
std::optional<std::int64_t> DateToNs(std::string_view text) {
  if (text.ends_with("+00:00")) text.remove_suffix(6);
  if (text.ends_with("Z")) text.remove_suffix(1);
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' ||
      (text[10] != ' ' && text[10] != 'T') || text[13] != ':' || text[16] != ':') {
    return std::nullopt;
  }
  const auto year = Digits(text.substr(0, 4), 2030);
  const auto month = Digits(text.substr(5, 2), 12);
  const auto day = Digits(text.substr(8, 2), 31);
  const auto hour = Digits(text.substr(11, 2), 23);
  const auto minute = Digits(text.substr(14, 2), 59);
  const auto second_ns = SecondsToNs(text.substr(17));
  if (!year || !month || !day || !hour || !minute || !second_ns) return std::nullopt;
  if (*year < 2000 || *month < 1 || *day < 1 || *second_ns >= 61 * kNsPerS) return std::nullopt;
  const std::int64_t days = DaysFromCivil(*year, *month, *day) - DaysFromCivil(2000, 1, 1);
  return ((days * 24 + *hour) * 60 + *minute) * 60 * kNsPerS + *second_ns;
}

// The fields of a CSV line; quoting has no place in these formats.
class CsvLine {
 public:
  explicit CsvLine(std::string_view line) {
    while (count_ < kMaxColumns) {
      const std::size_t comma = line.find(',');
      fields_[count_++] = Trim(line.substr(0, comma));
      if (comma == std::string_view::npos) return;
      line.remove_prefix(comma + 1);
    }
    count_ = kMaxColumns + 1;
  }
  std::size_t count() const { return count_; }
  std::string_view field(std::size_t i) const { return fields_[i]; }
  std::optional<std::size_t> Find(std::string_view name) const {
    for (std::size_t i = 0; i < std::min(count_, kMaxColumns); ++i)
      if (fields_[i] == name) return i;
    return std::nullopt;
  }

 private:
  std::array<std::string_view, kMaxColumns> fields_;
  std::size_t count_ = 0;
};

struct CsvColumns {
  const char* time = "";
  const char* prompt = "";
  const char* output = "";
  bool dates = false;
};

constexpr CsvColumns kAzureColumns = {"TIMESTAMP", "ContextTokens", "GeneratedTokens", true};
constexpr CsvColumns kBurstGptColumns = {"Timestamp", "Request tokens", "Response tokens", false};

// Of every format: adds a request, or says that there are too many.
Status Add(const TraceRequest& request, std::uint64_t line, ParsedTrace* trace) {
  if (request.prompt_tokens == 0 || request.output_tokens == 0) {
    ++trace->num_left_out;
    return Done{};
  }
  if (trace->workload.requests.size() == kMaxTraceRequests) {
    return Bad({line, "requests"}, "are more than " + std::to_string(kMaxTraceRequests));
  }
  trace->workload.requests.push_back(request);
  return Done{};
}

struct ColumnIndices {
  std::size_t time = 0;
  std::size_t prompt = 0;
  std::size_t output = 0;
  std::size_t count = 0;
};

Result<TraceRequest> ParseCsvLine(std::string_view line, const CsvColumns& columns,
                                  const ColumnIndices& at, std::uint64_t number) {
  const CsvLine fields(line);
  if (fields.count() != at.count) {
    return Bad({number, "columns"}, "are " + std::to_string(fields.count()) + "; the header has " +
                                        std::to_string(at.count));
  }
  const std::string_view time = fields.field(at.time);
  const std::optional<std::int64_t> ns = columns.dates ? DateToNs(time) : SecondsToNs(time);
  if (!ns) {
    return Bad({number, columns.time},
               std::string(columns.dates ? "is no date of 2000 to 2030: " : "is no time in s: ") +
                   Shown(time));
  }
  const auto prompt = Tokens(fields.field(at.prompt), {number, columns.prompt});
  if (!prompt) return prompt.error();
  const auto output = Tokens(fields.field(at.output), {number, columns.output});
  if (!output) return output.error();
  TraceRequest request;
  request.arrival_ns = *ns;
  request.prompt_tokens = *prompt;
  request.output_tokens = *output;
  return request;
}

Status ParseCsv(std::string_view text, const CsvColumns& columns, ParsedTrace* trace) {
  std::string_view header = TakeLine(&text);
  if (header.starts_with("\xef\xbb\xbf")) header.remove_prefix(3);
  const CsvLine names(header);
  auto time = names.Find(columns.time);
  // As the data set's own description has it.
  if (!time) time = names.Find(std::string(columns.time) + " (s)");
  const auto prompt = names.Find(columns.prompt);
  const auto output = names.Find(columns.output);
  if (!time || !prompt || !output) {
    return Bad({1, "header"}, std::string("lacks one of ") + columns.time + ", " + columns.prompt +
                                  ", " + columns.output + ": " + Shown(header));
  }
  const ColumnIndices at = {*time, *prompt, *output, names.count()};
  for (std::uint64_t number = 2; !text.empty(); ++number) {
    const std::string_view line = TakeLine(&text);
    if (line.empty()) continue;
    const auto request = ParseCsvLine(line, columns, at, number);
    if (!request) return request.error();
    if (Status added = Add(*request, number, trace); !added) return added;
  }
  return Done{};
}

Result<std::int64_t> Member(const json::object& object, const Place& place, std::int64_t limit) {
  const json::value* value = object.if_contains(place.field);
  if (value == nullptr) return Bad(place, "is missing");
  std::int64_t number = -1;
  if (const auto* i = value->if_int64()) number = *i;
  if (const auto* d = value->if_double(); d != nullptr && *d >= 0 && *d <= 1e15)
    number = static_cast<std::int64_t>(*d);
  if (number < 0 || number > limit)
    return Bad(place, "is no number from 0 to " + std::to_string(limit));
  return number;
}

Status HashIds(const json::object& object, std::uint64_t line, Workload* workload,
               TraceRequest* request) {
  const Place place = {line, "hash_ids"};
  request->first_hash = static_cast<std::uint32_t>(workload->hash_ids.size());
  const json::value* value = object.if_contains("hash_ids");
  if (value == nullptr) return Done{};
  const json::array* ids = value->if_array();
  if (ids == nullptr) return Bad(place, "is no array");
  if (ids->size() > kMaxTraceHashIds - workload->hash_ids.size())
    return Bad(place, "are more than " + std::to_string(kMaxTraceHashIds) + " in all");
  for (const json::value& id : *ids) {
    if (id.is_int64() && id.get_int64() >= 0) {
      workload->hash_ids.push_back(static_cast<std::uint64_t>(id.get_int64()));
    } else if (id.is_uint64()) {
      workload->hash_ids.push_back(id.get_uint64());
    } else {
      return Bad(place, "has something that is no whole number from 0");
    }
  }
  request->num_hashes = static_cast<std::uint32_t>(ids->size());
  return Done{};
}

Status ParseMooncakeLine(std::string_view line, std::uint64_t number, ParsedTrace* trace) {
  const Result<json::value> value = ParseJson(line, {.max_bytes = kMaxTraceLineBytes});
  if (!value) return Bad({number, ""}, value.error().message);
  const json::object* object = value->if_object();
  if (object == nullptr) return Bad({number, ""}, "is no JSON object");
  constexpr std::int64_t kNsPerMs = 1'000'000;
  const auto time = Member(*object, {number, "timestamp"}, kMaxTraceNs / kNsPerMs);
  if (!time) return time.error();
  const auto prompt = Member(*object, {number, "input_length"}, kMaxTraceTokens);
  if (!prompt) return prompt.error();
  const auto output = Member(*object, {number, "output_length"}, kMaxTraceTokens);
  if (!output) return output.error();
  TraceRequest request;
  request.arrival_ns = *time * kNsPerMs;
  request.prompt_tokens = static_cast<std::uint32_t>(*prompt);
  request.output_tokens = static_cast<std::uint32_t>(*output);
  if (Status ids = HashIds(*object, number, &trace->workload, &request); !ids) return ids;
  return Add(request, number, trace);
}

Status ParseMooncake(std::string_view text, ParsedTrace* trace) {
  for (std::uint64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = TakeLine(&text);
    if (line.empty()) continue;
    if (Status parsed = ParseMooncakeLine(line, number, trace); !parsed) return parsed;
  }
  return Done{};
}

Status ParseInto(TraceFormat format, std::string_view text, ParsedTrace* trace) {
  if (format == TraceFormat::kAzure) return ParseCsv(text, kAzureColumns, trace);
  if (format == TraceFormat::kBurstGpt) return ParseCsv(text, kBurstGptColumns, trace);
  return ParseMooncake(text, trace);
}

}  // namespace

const char* TraceFormatName(TraceFormat format) {
  return kFormatNames[static_cast<int>(format)];
}

std::optional<TraceFormat> FindTraceFormat(std::string_view name) {
  for (const TraceFormat format :
       {TraceFormat::kAzure, TraceFormat::kBurstGpt, TraceFormat::kMooncake}) {
    if (name == TraceFormatName(format)) return format;
  }
  return std::nullopt;
}

std::optional<TraceFormat> DetectTraceFormat(std::string_view text) {
  const std::string_view line = TakeLine(&text);
  if (line.starts_with("{")) return TraceFormat::kMooncake;
  if (line.find("ContextTokens") != std::string_view::npos) return TraceFormat::kAzure;
  if (line.find("Request tokens") != std::string_view::npos) return TraceFormat::kBurstGpt;
  return std::nullopt;
}

Result<ParsedTrace> ParseTrace(TraceFormat format, std::string_view text) {
  ParsedTrace trace;
  if (Status parsed = ParseInto(format, text, &trace); !parsed) return parsed.error();
  std::vector<TraceRequest>& requests = trace.workload.requests;
  if (requests.empty()) return Error{ErrorCode::kInvalidArgument, "there is no request in it"};
  std::ranges::stable_sort(requests, {}, &TraceRequest::arrival_ns);
  const std::int64_t first_ns = requests.front().arrival_ns;
  for (TraceRequest& request : requests)
    request.arrival_ns -= first_ns;
  trace.workload.name = TraceFormatName(format);
  return trace;
}

Result<ParsedTrace> ReadTrace(const std::string& path, std::optional<TraceFormat> format) {
  const Result<std::string> text = ReadFile(path, kMaxTraceFileBytes);
  if (!text) return text.error();
  if (!format) format = DetectTraceFormat(*text);
  if (!format) {
    return Error{ErrorCode::kUnsupported,
                 path + ": the first line is that of no trace format (azure, burstgpt, mooncake)"};
  }
  Result<ParsedTrace> trace = ParseTrace(*format, *text);
  if (!trace) return Error{trace.error().code, path + ": " + trace.error().message};
  trace->workload.name = std::filesystem::path(path).filename().string();
  return trace;
}

std::string MooncakeLine(const Workload& workload, const TraceRequest& request) {
  std::string line = "{\"timestamp\": " + std::to_string(request.arrival_ns / 1'000'000) +
                     ", \"input_length\": " + std::to_string(request.prompt_tokens) +
                     ", \"output_length\": " + std::to_string(request.output_tokens) +
                     ", \"hash_ids\": [";
  bool first = true;
  for (const std::uint64_t id : workload.HashIds(request)) {
    line += (first ? "" : ", ") + std::to_string(id);
    first = false;
  }
  return line + "]}\n";
}

}  // namespace kvrm
