// SPDX-License-Identifier: Apache-2.0
#include "replay/record.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"

namespace kvrm {
namespace {

constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kSummaryVersion = 2;
constexpr std::size_t kBufferBytes = 1u << 16;
constexpr std::size_t kMaxLineBytes = 64u << 20;

json::array Array(std::initializer_list<std::uint64_t> values) {
  json::array array;
  for (const std::uint64_t value : values)
    array.emplace_back(value);
  return array;
}

std::string Line(const json::object& object) {
  return json::serialize(object) + "\n";
}

// Members of one line, and what was wrong with the first bad one.
class LineFields {
 public:
  LineFields(const json::object& object, std::uint64_t line) : object_(object), line_(line) {}

  std::uint64_t Number(const char* name, std::uint64_t limit = kMaxNumber) {
    const json::value* value = object_.if_contains(name);
    if (value == nullptr) return Fail(name, "is missing");
    return Checked(*value, name, limit);
  }
  std::int64_t Time(const char* name) { return static_cast<std::int64_t>(Number(name)); }
  std::uint32_t Small(const char* name) {
    return static_cast<std::uint32_t>(Number(name, ~std::uint32_t{0}));
  }
  std::string Text(const char* name) {
    const json::value* value = object_.if_contains(name);
    if (value == nullptr || !value->is_string()) {
      Fail(name, "is no string");
      return {};
    }
    return std::string(value->get_string());
  }
  bool Bool(const char* name) {
    const json::value* value = object_.if_contains(name);
    if (value == nullptr || !value->is_bool()) return Fail(name, "is no truth value") != 0;
    return value->get_bool();
  }
  // `count` numbers, or as many as there are with 0.
  std::vector<std::uint64_t> Numbers(const char* name, std::size_t count) {
    std::vector<std::uint64_t> numbers;
    const json::value* value = object_.if_contains(name);
    const json::array* array = value == nullptr ? nullptr : value->if_array();
    if (array == nullptr || (count != 0 && array->size() != count)) {
      Fail(name, count == 0 ? "is no array" : "is no array of " + std::to_string(count));
      numbers.resize(count);
      return numbers;
    }
    for (const json::value& each : *array)
      numbers.push_back(Checked(each, name, kMaxNumber));
    return numbers;
  }
  double Sum(const char* name) {
    const json::value* value = object_.if_contains(name);
    boost::system::error_code code;
    const double number =
        value != nullptr && value->is_number() ? value->to_number<double>(code) : -1.0;
    if (!code && number >= 0.0 && number <= kMaxSum && !(number > 0.0 && number < 1.0))
      return number;
    Fail(name, "is no sum of whole numbers up to 1e60");
    return 0.0;
  }
  const json::array* Objects(const char* name) {
    const json::value* value = object_.if_contains(name);
    const json::array* array = value == nullptr ? nullptr : value->if_array();
    if (array == nullptr) Fail(name, "is no array");
    return array;
  }

  std::uint64_t Fail(const char* name, const std::string& what) {
    if (!error_)
      error_ = Error{ErrorCode::kInvalidArgument,
                     "line " + std::to_string(line_) + ": " + name + " " + what};
    return 0;
  }
  const std::optional<Error>& error() const { return error_; }
  Status status() const { return error_ ? Status(*error_) : Status(Done{}); }

 private:
  static constexpr std::uint64_t kMaxNumber = std::uint64_t{1} << 62;
  static constexpr double kMaxSum = 1e60;

  std::uint64_t Checked(const json::value& value, const char* name, std::uint64_t limit) {
    if (value.is_int64() && value.get_int64() >= 0 &&
        static_cast<std::uint64_t>(value.get_int64()) <= limit) {
      return static_cast<std::uint64_t>(value.get_int64());
    }
    return Fail(name, "is no whole number from 0 to " + std::to_string(limit));
  }

  const json::object& object_;
  const std::uint64_t line_;
  std::optional<Error> error_;
};

void ParsePhases(LineFields& fields, RecordHeader* header) {
  const json::array* phases = fields.Objects("phases");
  if (phases == nullptr) return;
  std::int64_t last_ns = 0;
  for (const json::value& phase : *phases) {
    const json::object* object = phase.if_object();
    if (object == nullptr) {
      fields.Fail("phases", "has something that is no object");
      return;
    }
    LineFields each(*object, 1);
    header->phases.push_back({each.Text("name"), each.Time("begin")});
    if (each.error() || header->phases.back().begin_ns < last_ns)
      fields.Fail("phases", "are no names and begins in order");
    last_ns = header->phases.back().begin_ns;
  }
}

Status ParseHeader(const json::object& object, RecordHeader* header) {
  LineFields fields(object, 1);
  const std::uint64_t version = fields.Number("kvrm_record");
  if (version != kVersion && version != kSummaryVersion)
    fields.Fail("kvrm_record", "is not version " + std::to_string(kVersion) + " or " +
                                   std::to_string(kSummaryVersion));
  if (version == kSummaryVersion) {
    header->num_replicas = static_cast<std::uint32_t>(fields.Number("replicas", kMaxReplicas));
    if (header->num_replicas == 0) fields.Fail("replicas", "is 0");
  }
  header->target = fields.Text("target");
  header->clock = fields.Text("clock");
  header->command = fields.Text("command");
  header->workload = fields.Text("workload");
  const std::string seed = fields.Text("seed");
  const auto [end, error] = std::from_chars(seed.data(), seed.data() + seed.size(), header->seed);
  if (error != std::errc() || end != seed.data() + seed.size())
    fields.Fail("seed", "is no number in quotes");
  header->num_requests = fields.Number("requests");
  const json::value* rate = object.if_contains("offered_rps");
  boost::system::error_code code;
  if (rate != nullptr && rate->is_number()) header->offered_rps = rate->to_number<double>(code);
  if (rate == nullptr || !rate->is_number() || code || header->offered_rps < 0.0)
    fields.Fail("offered_rps", "is no number from 0");
  ParsePhases(fields, header);
  const json::value* config = object.if_contains("config");
  if (config == nullptr || !config->is_object()) {
    fields.Fail("config", "is no object");
    return fields.status();
  }
  for (const auto& member : config->get_object()) {
    if (!member.value().is_string()) {
      fields.Fail("config", "has something that is no string");
    } else {
      header->config.emplace_back(std::string(member.key()),
                                  std::string(member.value().get_string()));
    }
  }
  return fields.status();
}

void ParseGaps(LineFields& fields, RequestRecord* request) {
  std::uint64_t sum = static_cast<std::uint64_t>(request->sent_ns);
  for (const std::uint64_t gap : fields.Numbers("gaps", 0)) {
    if (gap > (std::uint64_t{1} << 62) - std::min(sum, std::uint64_t{1} << 62))
      fields.Fail("gaps", "sum up to more than 2^62 ns");
    sum += gap;
    request->gaps_ns.push_back(static_cast<std::int64_t>(gap));
  }
}

void ParseOutputs(LineFields& fields, std::uint32_t num_replicas, RequestRecord* request) {
  request->replica = static_cast<std::uint32_t>(fields.Number("replica", num_replicas - 1));
  const std::vector<std::uint64_t> n = fields.Numbers("outputs", 3);
  if (n[1] > n[2]) fields.Fail("outputs", "has its last output before its first one");
  request->summary = {n[0], static_cast<std::int64_t>(n[1]), static_cast<std::int64_t>(n[2])};
}

Status ParseRequest(LineFields fields, Record* record) {
  RequestRecord request;
  request.request = fields.Number("request");
  request.group = fields.Text("group");
  request.warmup = fields.Bool("warmup");
  request.arrival_ns = fields.Time("arrival");
  request.sent_ns = fields.Time("sent");
  request.end_ns = fields.Time("end");
  request.prompt_tokens = fields.Small("prompt");
  request.asked_tokens = fields.Small("asked");
  request.output_tokens = fields.Small("output");
  request.cached_tokens = fields.Small("cached");
  request.finish = fields.Text("finish");
  request.error = fields.Text("error");
  if (record->header.is_summary())
    ParseOutputs(fields, record->header.num_replicas, &request);
  else
    ParseGaps(fields, &request);
  if (fields.error()) return fields.status();
  record->requests.push_back(std::move(request));
  return Done{};
}

// [bucket, count, ..] in order of buckets.
std::vector<std::uint64_t> ParseCounts(LineFields& fields) {
  std::vector<std::uint64_t> counts;
  const std::vector<std::uint64_t> pairs = fields.Numbers("counts", 0);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < pairs.size(); i += 2) {
    const bool is_bad = i + 1 == pairs.size() || pairs[i] >= LogHistogram::kMaxBuckets ||
                        pairs[i] < counts.size() || pairs[i + 1] == 0 ||
                        pairs[i + 1] > (std::uint64_t{1} << 62) - total;
    if (is_bad) {
      fields.Fail("counts", "are no buckets in order, each with a count");
      return {};
    }
    total += pairs[i + 1];
    counts.resize(pairs[i], 0);
    counts.push_back(pairs[i + 1]);
  }
  return counts;
}

Status ParseHistogram(LineFields fields, RecordSummary* summary) {
  const std::string name = fields.Text("histogram");
  LogHistogram* const histogram = name == "itl"    ? &summary->itl_ns
                                  : name == "step" ? &summary->step_ns
                                                   : nullptr;
  if (histogram == nullptr) fields.Fail("histogram", "is neither itl nor step");
  const LogHistogram::Totals totals = {
      .sum = fields.Sum("sum"), .squares = fields.Sum("squares"), .max = fields.Number("max")};
  std::vector<std::uint64_t> counts = ParseCounts(fields);
  if (fields.error()) return fields.status();
  if (!histogram->Restore(std::move(counts), totals))
    fields.Fail("counts", "do not end in the bucket of max");
  return fields.status();
}

Status ParseReplica(LineFields fields, std::uint32_t num_replicas, RecordSummary* summary) {
  const std::vector<std::uint64_t> n = fields.Numbers("replica", 12);
  if (n[0] != summary->replicas.size() || n[0] >= num_replicas)
    fields.Fail("replica", "is not the next one");
  if (n[7] > n[8]) fields.Fail("replica", "ends before it begins");
  const auto memory = [&fields](const char* name, std::uint64_t max) {
    return MemorySum{.byte_ns = fields.Sum(name), .max = max};
  };
  const ReplicaSummary replica = {.num_steps = n[1],
                                  .num_rows = n[2],
                                  .num_tokens = n[3],
                                  .moved_bytes = n[4],
                                  .num_groups = n[5],
                                  .max_moved_bytes = n[6],
                                  .first_end_ns = static_cast<std::int64_t>(n[7]),
                                  .last_end_ns = static_cast<std::int64_t>(n[8]),
                                  .reserved = memory("reserved", n[9]),
                                  .mapped = memory("mapped", n[10]),
                                  .live = memory("live", n[11])};
  if (!fields.error()) summary->replicas.push_back(replica);
  return fields.status();
}

Status ParseStep(LineFields fields, Record* record) {
  const std::vector<std::uint64_t> n = fields.Numbers("step", 9);
  if (fields.error()) return fields.status();
  record->steps.push_back({.at_ns = static_cast<std::int64_t>(n[0]),
                           .ns = static_cast<std::int64_t>(n[1]),
                           .num_rows = static_cast<std::uint32_t>(n[2]),
                           .num_tokens = static_cast<std::uint32_t>(n[3]),
                           .moved_bytes = n[4],
                           .num_groups = static_cast<std::uint32_t>(n[5]),
                           .reserved_bytes = n[6],
                           .mapped_bytes = n[7],
                           .live_bytes = n[8]});
  return Done{};
}

Status ParseMemory(LineFields fields, Record* record) {
  const std::vector<std::uint64_t> n = fields.Numbers("memory", 5);
  if (fields.error()) return fields.status();
  record->memory.push_back({static_cast<std::int64_t>(n[0]), n[1], n[2], n[3], n[4]});
  return Done{};
}

// [start, blocks, owner, ..]: ascending and disjoint.
Status ParseMap(LineFields fields, Record* record) {
  MapRecord map = {.at_ns = fields.Time("map"), .num_blocks = fields.Small("blocks")};
  const std::vector<std::uint64_t> n = fields.Numbers("runs", 0);
  if (n.size() % 3 != 0) fields.Fail("runs", "are no starts, lengths and owners");
  std::uint64_t end = 0;
  for (std::size_t i = 0; i + 2 < n.size() && !fields.error(); i += 3) {
    if (n[i] < end || n[i + 1] == 0 || n[i] >= map.num_blocks || n[i + 1] > map.num_blocks - n[i])
      fields.Fail("runs", "are not in order, or beyond the blocks");
    end = n[i] + n[i + 1];
    map.runs.push_back(
        {static_cast<std::uint32_t>(n[i]), static_cast<std::uint32_t>(n[i + 1]), n[i + 2]});
  }
  if (!record->maps.empty()) {
    const MapRecord& last = record->maps.back();
    if (map.at_ns < last.at_ns) fields.Fail("map", "is before the last one");
    if (map.num_blocks != last.num_blocks) fields.Fail("blocks", "are not as many as before");
  }
  if (record->maps.size() == kMostMaps) fields.Fail("map", "is one too many");
  if (!fields.error()) record->maps.push_back(std::move(map));
  return fields.status();
}

Status ParseLine(const json::object& object, std::uint64_t line, Record* record) {
  LineFields fields(object, line);
  if (line == 1) return ParseHeader(object, &record->header);
  if (record->complete) {
    fields.Fail("end", "is not the last line");
    return fields.status();
  }
  if (object.contains("request")) return ParseRequest(fields, record);
  if (object.contains("step")) return ParseStep(fields, record);
  if (object.contains("memory")) return ParseMemory(fields, record);
  if (object.contains("map")) return ParseMap(fields, record);
  std::uint64_t num_steps = record->steps.size();
  if (record->header.is_summary()) {
    if (!record->summary) record->summary.emplace();
    if (object.contains("histogram")) return ParseHistogram(fields, &*record->summary);
    if (object.contains("replica"))
      return ParseReplica(fields, record->header.num_replicas, &*record->summary);
    if (record->summary->replicas.size() != record->header.num_replicas)
      fields.Fail("replica", "has not as many lines as there are");
    num_steps = record->summary->step_ns.count();
  }
  record->end_ns = fields.Time("end");
  if (fields.Number("requests") != record->requests.size())
    fields.Fail("requests", "is not how many there are");
  if (fields.Number("steps") != num_steps) fields.Fail("steps", "is not how many there are");
  record->complete = true;
  return fields.status();
}

json::object RequestFields(const RequestRecord& request) {
  return {{"request", request.request},      {"group", request.group},
          {"warmup", request.warmup},        {"arrival", request.arrival_ns},
          {"sent", request.sent_ns},         {"end", request.end_ns},
          {"prompt", request.prompt_tokens}, {"asked", request.asked_tokens},
          {"output", request.output_tokens}, {"cached", request.cached_tokens},
          {"finish", request.finish},        {"error", request.error}};
}

std::string HistogramLine(const char* name, const LogHistogram& histogram) {
  json::array counts;
  for (std::size_t bucket = 0; bucket < histogram.counts().size(); ++bucket) {
    const std::uint64_t count = histogram.counts()[bucket];
    if (count == 0) continue;
    counts.emplace_back(bucket);
    counts.emplace_back(count);
  }
  return Line({{"histogram", name},
               {"sum", histogram.sum()},
               {"squares", histogram.squares()},
               {"max", histogram.max()},
               {"counts", std::move(counts)}});
}

std::string ReplicaLine(std::uint64_t idx, const ReplicaSummary& replica) {
  return Line({{"replica", Array({idx, replica.num_steps, replica.num_rows, replica.num_tokens,
                                  replica.moved_bytes, replica.num_groups, replica.max_moved_bytes,
                                  static_cast<std::uint64_t>(replica.first_end_ns),
                                  static_cast<std::uint64_t>(replica.last_end_ns),
                                  replica.reserved.max, replica.mapped.max, replica.live.max})},
               {"reserved", replica.reserved.byte_ns},
               {"mapped", replica.mapped.byte_ns},
               {"live", replica.live.byte_ns}});
}

}  // namespace

OutputSpan RequestRecord::outputs() const {
  if (gaps_ns.empty()) return summary;
  OutputSpan span = {.count = gaps_ns.size(), .first_ns = gaps_ns.front()};
  for (const std::int64_t gap : gaps_ns)
    span.last_ns += gap;
  return span;
}

std::string RecordLine(const RecordHeader& header) {
  json::array phases;
  for (const RecordPhase& phase : header.phases)
    phases.push_back(json::object{{"name", phase.name}, {"begin", phase.begin_ns}});
  json::object config;
  for (const auto& [name, value] : header.config)
    config[name] = value;
  json::object fields = {{"kvrm_record", header.is_summary() ? kSummaryVersion : kVersion},
                         {"target", header.target},
                         {"clock", header.clock},
                         {"command", header.command},
                         {"workload", header.workload},
                         {"seed", std::to_string(header.seed)},
                         {"requests", header.num_requests},
                         {"offered_rps", header.offered_rps},
                         {"phases", std::move(phases)},
                         {"config", std::move(config)}};
  if (header.is_summary()) fields["replicas"] = header.num_replicas;
  return Line(fields);
}

std::string RecordLine(const RequestRecord& request) {
  json::array gaps;
  gaps.reserve(request.gaps_ns.size());
  for (const std::int64_t gap : request.gaps_ns)
    gaps.emplace_back(gap);
  json::object fields = RequestFields(request);
  fields["gaps"] = std::move(gaps);
  return Line(fields);
}

std::string SummaryLine(const RequestRecord& request) {
  json::object fields = RequestFields(request);
  const OutputSpan outputs = request.outputs();
  fields["replica"] = request.replica;
  fields["outputs"] = Array({outputs.count, static_cast<std::uint64_t>(outputs.first_ns),
                             static_cast<std::uint64_t>(outputs.last_ns)});
  return Line(fields);
}

std::string RecordLines(const RecordSummary& summary) {
  std::string lines = HistogramLine("itl", summary.itl_ns) + HistogramLine("step", summary.step_ns);
  for (std::size_t i = 0; i < summary.replicas.size(); ++i)
    lines += ReplicaLine(i, summary.replicas[i]);
  return lines;
}

std::string RecordLine(const StepRecord& step) {
  return Line(
      {{"step", Array({static_cast<std::uint64_t>(step.at_ns), static_cast<std::uint64_t>(step.ns),
                       step.num_rows, step.num_tokens, step.moved_bytes, step.num_groups,
                       step.reserved_bytes, step.mapped_bytes, step.live_bytes})}});
}

std::string RecordLine(const MemoryRecord& memory) {
  return Line({{"memory", Array({static_cast<std::uint64_t>(memory.at_ns), memory.reserved_bytes,
                                 memory.mapped_bytes, memory.live_bytes, memory.resident_bytes})}});
}

std::string RecordLine(const MapRecord& map) {
  json::array runs;
  for (const BlockMapRun& run : map.runs) {
    for (const std::uint64_t value :
         {std::uint64_t{run.start}, std::uint64_t{run.num_blocks}, run.owner})
      runs.emplace_back(value);
  }
  return Line({{"map", map.at_ns}, {"blocks", map.num_blocks}, {"runs", std::move(runs)}});
}

RecordWriter::RecordWriter(const std::string& path, const RecordHeader& header) : path_(path) {
  if (header.is_summary()) summary_.emplace().replicas.resize(header.num_replicas);
  if (path.empty()) return;
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) throw StartError("cannot write the record " + path + ": " + std::strerror(errno));
  buffer_.reserve(2 * kBufferBytes);
  Append(RecordLine(header));
}

RecordWriter::~RecordWriter() {
  Flush();
  if (fd_ >= 0) ::close(fd_);
}

void RecordWriter::Add(const RequestRecord& request) {
  ++num_requests_;
  if (fd_ >= 0) Append(is_summary() ? SummaryLine(request) : RecordLine(request));
}

void RecordWriter::Add(const StepRecord& step) {
  ++num_steps_;
  if (is_summary())
    summary_->Add(step);
  else if (fd_ >= 0)
    Append(RecordLine(step));
}

void RecordWriter::Add(const MemoryRecord& memory) {
  if (fd_ >= 0) Append(RecordLine(memory));
}

void RecordWriter::Add(MapRecord map) {
  CHECK(WantsMap(map.at_ns));
  maps_.Add(std::move(map));
}

void RecordWriter::End(std::int64_t end_ns) {
  if (fd_ < 0) return;
  for (const MapRecord& map : maps_.maps())
    Append(RecordLine(map));
  if (is_summary()) Append(RecordLines(*summary_));
  Append(Line({{"end", end_ns}, {"requests", num_requests_}, {"steps", num_steps_}}));
  Flush();
  if (failed_) throw StartError("cannot write the record " + path_);
}

void RecordWriter::Append(std::string_view line) {
  buffer_ += line;
  if (buffer_.size() >= kBufferBytes) Flush();
}

void RecordWriter::Flush() {
  const char* at = buffer_.data();
  std::size_t left = fd_ < 0 ? 0 : buffer_.size();
  while (left > 0 && !failed_) {
    const ssize_t written = ::write(fd_, at, left);
    if (written < 0 && errno == EINTR) continue;
    failed_ = written <= 0;
    if (failed_) break;
    at += written;
    left -= static_cast<std::size_t>(written);
  }
  buffer_.clear();
}

Result<Record> ParseRecord(std::string_view text) {
  Record record;
  std::uint64_t line = 1;
  for (; !text.empty(); ++line) {
    const std::size_t end = text.find('\n');
    // A line that was cut short is where a replay was.
    if (end == std::string_view::npos) break;
    const Result<json::value> value = ParseJson(text.substr(0, end), {.max_bytes = kMaxLineBytes});
    text.remove_prefix(end + 1);
    const std::string place = "line " + std::to_string(line) + ": ";
    if (!value) return Error{value.error().code, place + value.error().message};
    if (!value->is_object()) return Error{ErrorCode::kInvalidArgument, place + "is no JSON object"};
    if (Status parsed = ParseLine(value->get_object(), line, &record); !parsed)
      return parsed.error();
  }
  if (line == 1) return Error{ErrorCode::kInvalidArgument, "the record has no header"};
  return record;
}

Result<Record> ReadRecord(const std::string& path) {
  const Result<std::string> text = ReadFile(path, kMaxRecordBytes);
  if (!text) return text.error();
  Result<Record> record = ParseRecord(*text);
  if (!record) return Error{record.error().code, path + ": " + record.error().message};
  return record;
}

}  // namespace kvrm
