// SPDX-License-Identifier: Apache-2.0
// Record: what a replay saw, line by line (docs/formats.md has the grammar). Every metric is
// derived from it and from nothing else.
//
// JSON lines: a header, then requests as they end, steps and memory as they are seen, maps of the
// pool, and an end. A record without an end was cut short and says so when it is read. A summarised
// record keeps of every request its first and its last output, and of all else what
// replay/record_summary.h has.
//
// Times are ns since the replay began. Threading: one thread. Memory: the writer holds one buffer,
// maps (replay/kv_map.h) and a summary; the reader all of the record.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "replay/kv_map.h"
#include "replay/record_summary.h"

namespace kvrm {

struct RecordPhase {
  std::string name;
  std::int64_t begin_ns = 0;
};

struct RecordHeader {
  std::string target = {};   // "engine", "sim" or the URL
  std::string clock = {};    // "real" or "virtual"
  std::string command = {};  // as typed
  std::string workload = {};
  std::uint64_t seed = 0;
  std::uint64_t num_requests = 0;
  double offered_rps = 0.0;  // of the timed requests; 0: none
  std::vector<RecordPhase> phases = {};
  std::vector<std::pair<std::string, std::string>> config = {};
  std::uint32_t num_replicas = 0;  // not 0: a summarised record, of so many engines

  bool is_summary() const { return num_replicas > 0; }
};
inline constexpr std::uint32_t kMaxReplicas = 4096;

// When output came, without what lies between; times are since the request was sent.
struct OutputSpan {
  std::uint64_t count = 0;
  std::int64_t first_ns = 0;
  std::int64_t last_ns = 0;
};

struct RequestRecord {
  std::uint64_t request = 0;  // its place in the workload
  std::uint32_t replica = 0;  // which engine of several served it, or would have
  std::string group = {};
  bool warmup = false;          // not counted in any metric
  std::int64_t arrival_ns = 0;  // when it was due
  std::int64_t sent_ns = 0;     // when it was sent; latencies begin here
  std::int64_t end_ns = 0;
  std::uint32_t prompt_tokens = 0;  // as the target counts
  std::uint32_t asked_tokens = 0;   // of output
  std::uint32_t output_tokens = 0;
  std::uint32_t cached_tokens = 0;
  std::string finish = {};  // "length", "stop", ..; "cancelled": by the replay; "error"
  std::string error = {};
  // When output came: the first entry since sent_ns, each further one since the one before. One
  // entry a token, or a chunk where a server puts more than one token into one.
  std::vector<std::int64_t> gaps_ns = {};
  OutputSpan summary = {};  // in a summarised record, where there are no gaps_ns

  bool failed() const { return finish == "error"; }
  OutputSpan outputs() const;
};

// A step of the engine, where the target shows them.
struct StepRecord {
  std::int64_t at_ns = 0;  // its begin
  std::int64_t ns = 0;
  std::uint32_t num_rows = 0;
  std::uint32_t num_tokens = 0;
  std::uint64_t moved_bytes = 0;
  std::uint32_t num_groups = 0;
  // Of KV memory, as of its end.
  std::uint64_t reserved_bytes = 0;
  std::uint64_t mapped_bytes = 0;
  std::uint64_t live_bytes = 0;
  std::uint32_t replica = 0;  // as of requests
};

struct MemoryRecord {
  std::int64_t at_ns = 0;
  std::uint64_t reserved_bytes = 0;
  std::uint64_t mapped_bytes = 0;
  std::uint64_t live_bytes = 0;
  std::uint64_t resident_bytes = 0;  // of the server's process; 0: not known
};

class RecordWriter {
 public:
  // "" writes nothing. Throws StartError.
  RecordWriter(const std::string& path, const RecordHeader& header);
  ~RecordWriter();
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  void Add(const RequestRecord& request);
  void Add(const StepRecord& step);
  void Add(const MemoryRecord& memory);
  // Whether a map of the pool as of now belongs into the record; times do not descend. Maps are
  // written with the end, so a record that was cut short has none.
  bool WantsMap(std::int64_t at_ns) const { return fd_ >= 0 && !summary_ && maps_.IsDue(at_ns); }
  // Requires: WantsMap(map.at_ns).
  void Add(MapRecord map);
  // Whether it is told of gaps one by one and keeps none.
  bool is_summary() const { return summary_.has_value(); }
  // Requires: is_summary.
  void AddGap(std::int64_t ns) { summary_->itl_ns.Add(static_cast<std::uint64_t>(ns)); }
  // The last line; throws StartError when anything could not be written.
  void End(std::int64_t end_ns);

 private:
  void Append(std::string_view line);
  void Flush();

  const std::string path_;
  int fd_ = -1;
  bool failed_ = false;
  std::string buffer_;
  std::uint64_t num_requests_ = 0;
  std::uint64_t num_steps_ = 0;
  std::optional<RecordSummary> summary_;
  MapSampler maps_;
};

struct Record {
  RecordHeader header;
  std::vector<RequestRecord> requests = {};
  std::vector<StepRecord> steps = {};
  std::vector<MemoryRecord> memory = {};
  std::vector<MapRecord> maps = {};           // in order of time, of one number of blocks
  std::optional<RecordSummary> summary = {};  // of a summarised one, with its end
  std::int64_t end_ns = 0;
  bool complete = false;
};

inline constexpr std::uint64_t kMaxRecordBytes = std::uint64_t{4} << 30;

// The error names the line and the field.
Result<Record> ParseRecord(std::string_view text);
Result<Record> ReadRecord(const std::string& path);

// The lines themselves, each with its line feed.
std::string RecordLine(const RecordHeader& header);
std::string RecordLine(const RequestRecord& request);
std::string SummaryLine(const RequestRecord& request);
std::string RecordLine(const StepRecord& step);
std::string RecordLine(const MemoryRecord& memory);
std::string RecordLine(const MapRecord& map);
// Two lines of histograms and one a replica.
std::string RecordLines(const RecordSummary& summary);

}  // namespace kvrm
