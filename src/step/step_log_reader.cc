// SPDX-License-Identifier: Apache-2.0
// Reading a descriptor log. Every number of the file is bounded before anything is done with it.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "step/step_log.h"
#include "step/step_log_format.h"

namespace kvrm {
namespace {

// Runs of a descriptor, all rows: 2^24 are 128 MiB, far beyond any real geometry.
constexpr std::uint64_t kMaxRunEntries = 1u << 24;

// Bounds of the header's words, in their order in the file.
struct WordLimit {
  const char* name;
  std::uint32_t least;
  std::uint32_t most;
};
constexpr WordLimit kHeaderLimits[kStepLogHeaderWords] = {
    {"version", kStepLogVersion, kStepLogVersion},
    {"step_version", kStepVersion, kStepVersion},
    {"flags", 0, kStepLogFlagLives},
    {"max_rows", 1, 1u << 16},
    {"max_tokens", 1, 1u << 24},
    {"max_runs", 1, 1u << 24},
    {"max_groups", 0, 1u << 22},
    {"max_samples", 0, 1u << 24},
    {"block_tokens", 1, 1u << 12},
    {"mirrored", 0, 1},
    {"num_layers", 0, 1u << 16},
    {"num_kv_heads", 0, 1u << 16},
    {"head_dim", 0, 1u << 16},
    {"dtype", 0, 255},
    {"num_pool_blocks", 1, std::numeric_limits<std::uint32_t>::max()},
    {"num_window_blocks", 0, std::numeric_limits<std::uint32_t>::max()},
    {"num_layer_blocks", 0, std::numeric_limits<std::uint32_t>::max()},
    {"num_lanes", 1, 1u << 20},
    {"lane_blocks", 1, 1u << 28},
    {"ring_entries", 1, 1u << 10},
    {"num_host_blocks", 0, std::numeric_limits<std::uint32_t>::max() - 1},
    {"max_parked", 0, 1u << 20},
};

Error At(std::uint64_t offset, const std::string& message) {
  return Error{ErrorCode::kInvalidArgument, "byte " + std::to_string(offset) + ": " + message};
}

Error OutOfRange(std::uint64_t offset, const std::string& name, std::uint64_t value,
                 std::uint64_t least, std::uint64_t most) {
  return At(offset, name + " is " + std::to_string(value) + ", not " + std::to_string(least) +
                        " to " + std::to_string(most));
}

// Takes items off the front of a payload that has been copied to aligned memory.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::size_t left() const { return bytes_.size(); }
  // False when there are not so many.
  template <typename T>
  bool Take(std::uint64_t count, std::span<const T>* items) {
    if (count > bytes_.size() / sizeof(T)) return false;
    *items = {static_cast<const T*>(static_cast<const void*>(bytes_.data())),
              static_cast<std::size_t>(count)};
    bytes_ = bytes_.subspan(items->size_bytes());
    return true;
  }
  template <typename T>
  bool Take(T* item) {
    if (bytes_.size() < sizeof(T)) return false;
    std::memcpy(item, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
};

std::string NameOf(std::span<const std::byte> field) {
  std::string name;
  for (const std::byte byte : field) {
    const char c = static_cast<char>(byte);
    if (c == 0) break;
    name += c >= 0x20 && c < 0x7f ? c : '?';
  }
  return name;
}

// The first of the view's counts that exceeds its limit; null: none.
const char* CountBeyond(const StepHeader& step, const StepLimits& limits, std::uint64_t* value,
                        std::uint64_t* most) {
  struct Count {
    const char* name;
    std::uint64_t value;
    std::uint64_t most;
  };
  const Count counts[] = {{"bucket_rows", step.bucket_rows, limits.max_rows},
                          {"num_rows", step.num_rows, step.bucket_rows},
                          {"num_tokens", step.num_tokens, limits.max_tokens},
                          {"num_samples", step.num_samples, limits.max_samples},
                          {"num_groups", step.num_groups, limits.max_groups}};
  for (const Count& count : counts) {
    if (count.value <= count.most) continue;
    *value = count.value;
    *most = count.most;
    return count.name;
  }
  return nullptr;
}

// Spreads the runs to a common stride. Null, or what is wrong.
const char* TakeRuns(Cursor* cursor, const StepLimits& limits, StepView* view,
                     std::vector<Extent>* spread) {
  std::uint64_t total = 0;
  std::uint32_t stride = 1;
  for (const std::uint32_t count : view->num_runs) {
    if (count > limits.max_runs) return "num_runs is above max_runs";
    total += count;
    stride = std::max(stride, count);
  }
  std::span<const Extent> runs;
  if (!cursor->Take(total, &runs)) return "runs are cut off";
  spread->assign(std::size_t{stride} * view->num_runs.size(), Extent{});
  std::size_t at = 0;
  for (std::size_t row = 0; row < view->num_runs.size(); ++row) {
    std::copy_n(runs.begin() + static_cast<std::ptrdiff_t>(at), view->num_runs[row],
                spread->begin() + static_cast<std::ptrdiff_t>(row * stride));
    at += view->num_runs[row];
  }
  view->runs = *spread;
  view->max_runs = stride;
  return nullptr;
}

// Null, or what is wrong.
const char* TakeStep(Cursor* cursor, const StepLimits& limits, StepView* view,
                     std::vector<Extent>* spread) {
  const StepHeader& step = *view->header;
  const std::uint32_t num_mirrors = (step.flags & kStepMirrored) != 0 ? step.num_tokens : 0;
  if (!cursor->Take(step.num_tokens, &view->token_ids)) return "token_ids are cut off";
  if (!cursor->Take(step.num_tokens, &view->positions)) return "positions are cut off";
  if (!cursor->Take(step.num_tokens, &view->slots)) return "slots are cut off";
  if (!cursor->Take(num_mirrors, &view->mirrors)) return "mirrors are cut off";
  if (!cursor->Take(std::uint64_t{step.num_rows} + 1, &view->row_start))
    return "row_start is cut off";
  if (!cursor->Take(step.num_rows, &view->row_seq)) return "row_seq is cut off";
  if (!cursor->Take(step.bucket_rows, &view->num_runs)) return "num_runs are cut off";
  const char* const bad_runs = TakeRuns(cursor, limits, view, spread);
  if (bad_runs != nullptr) return bad_runs;
  if (!cursor->Take(step.num_samples, &view->sample_token)) return "sample_token is cut off";
  if (!cursor->Take(step.num_groups, &view->groups)) return "groups are cut off";
  return nullptr;
}

// Null, or what is wrong. Not for kStep.
const char* TakeSmall(Cursor* cursor, StepLogRecord* record) {
  std::uint32_t count = 0;
  switch (record->kind) {
    case StepLogKind::kOpened: {
      StepLogOpened& opened = record->opened;
      if (!cursor->Take(&opened.seq) || !cursor->Take(&opened.parent) ||
          !cursor->Take(&opened.num_tokens) || !cursor->Take(&count) ||
          !cursor->Take(&opened.request) || !cursor->Take(&opened.salt)) {
        return "opened is cut off";
      }
      return cursor->Take(count, &opened.tokens) ? nullptr : "tokens are cut off";
    }
    case StepLogKind::kTrimmed:
      return cursor->Take(&record->seq) && cursor->Take(&record->from) && cursor->Take(&record->to)
                 ? nullptr
                 : "trimmed is cut off";
    case StepLogKind::kParked:
    case StepLogKind::kResumed:
      if (!cursor->Take(&record->seq) || !cursor->Take(&count)) return "parked is cut off";
      record->value = count;
      return nullptr;
    case StepLogKind::kLanded:
      return cursor->Take(&record->step) && cursor->Take(&record->value) ? nullptr
                                                                         : "landed is cut off";
    case StepLogKind::kLatched:
      return cursor->Take(&record->step) ? nullptr : "step is cut off";
    case StepLogKind::kRetired:
      return cursor->Take(&record->step) && cursor->Take(&record->value) ? nullptr
                                                                         : "retired is cut off";
    case StepLogKind::kSampled:
      return cursor->Take(&record->step) && cursor->Take(&count) &&
                     cursor->Take(count, &record->tokens)
                 ? nullptr
                 : "sampled is cut off";
    case StepLogKind::kGap:
    case StepLogKind::kEnd:
      return cursor->Take(&record->value) ? nullptr : "count is cut off";
    case StepLogKind::kHeader:
    case StepLogKind::kStep:
      break;
  }
  return "a second header";
}

}  // namespace

Result<StepLogReader> StepLogReader::Open(std::span<const std::byte> bytes) {
  StepLogReader reader(bytes);
  if (bytes.size() < sizeof(kStepLogMagic) ||
      std::memcmp(bytes.data(), kStepLogMagic, sizeof(kStepLogMagic)) != 0) {
    return At(0, "this is no descriptor log");
  }
  reader.offset_ = sizeof(kStepLogMagic);
  Status status = reader.ReadHeader();
  if (!status) return status.error();
  return reader;
}

// The frame at offset_, and its payload when the checksum holds.
Result<StepLogKind> StepLogReader::Frame(std::span<const std::byte>* payload) const {
  const std::uint64_t left = bytes_.size() - offset_;
  StepLogFrame frame;
  if (left < sizeof(frame)) {
    return Error{ErrorCode::kIo, "byte " + std::to_string(offset_) +
                                     ": the log is cut off here, without an end record"};
  }
  std::memcpy(&frame, bytes_.data() + offset_, sizeof(frame));
  if (frame.kind < static_cast<std::uint32_t>(StepLogKind::kHeader) ||
      frame.kind > static_cast<std::uint32_t>(StepLogKind::kResumed)) {
    return OutOfRange(offset_, "kind", frame.kind, 1,
                      static_cast<std::uint64_t>(StepLogKind::kResumed));
  }
  if (frame.payload_bytes % 4 != 0) {
    return At(offset_ + 4,
              "payload_bytes is " + std::to_string(frame.payload_bytes) + ", not a multiple of 4");
  }
  if (frame.payload_bytes > left - sizeof(frame)) {
    return Error{ErrorCode::kIo, "byte " + std::to_string(offset_) + ": the log is cut off in a " +
                                     "record of " + std::to_string(frame.payload_bytes) + " bytes"};
  }
  *payload = bytes_.subspan(offset_ + sizeof(frame), frame.payload_bytes);
  if (StepLogChecksum(frame.kind, *payload) != frame.checksum)
    return At(offset_ + 8, "checksum does not hold");
  return StepLogKind{frame.kind};
}

Status StepLogReader::ReadHeader() {
  std::span<const std::byte> payload;
  const Result<StepLogKind> kind = Frame(&payload);
  if (!kind) return kind.error();
  if (*kind != StepLogKind::kHeader) return At(offset_, "the first record is no header");
  if (payload.size() != kStepLogHeaderBytes) {
    return At(offset_ + 4, "the header has " + std::to_string(payload.size()) + " bytes, not " +
                               std::to_string(kStepLogHeaderBytes));
  }
  std::uint32_t words[kStepLogHeaderWords];
  std::memcpy(words, payload.data(), sizeof(words));
  const std::uint64_t first = offset_ + sizeof(StepLogFrame);
  for (std::uint32_t i = 0; i < kStepLogHeaderWords; ++i) {
    const WordLimit& limit = kHeaderLimits[i];
    if (words[i] < limit.least || words[i] > limit.most)
      return OutOfRange(first + 4 * i, limit.name, words[i], limit.least, limit.most);
  }
  header_.has_lives = words[2] != 0;
  header_.limits = {.max_rows = words[3],
                    .max_tokens = words[4],
                    .max_runs = words[5],
                    .max_groups = words[6],
                    .max_samples = words[7],
                    .block_tokens = words[8],
                    .mirrored = words[9] != 0};
  header_.layout = {.num_layers = words[10],
                    .num_kv_heads = words[11],
                    .head_dim = words[12],
                    .block_tokens = words[8],
                    .dtype = static_cast<DType>(words[13])};
  header_.num_pool_blocks = words[14];
  header_.num_window_blocks = words[15];
  header_.num_layer_blocks = words[16];
  header_.num_lanes = words[17];
  header_.lane_blocks = words[18];
  header_.ring_entries = words[19];
  header_.num_host_blocks = words[20];
  header_.max_parked = words[21];
  const auto names = payload.subspan(sizeof(words));
  header_.view = NameOf(names.first(kStepLogNameBytes));
  header_.placement = NameOf(names.subspan(kStepLogNameBytes));
  if (std::uint64_t{words[3]} * words[5] > kMaxRunEntries)
    return OutOfRange(first + 20, "max_rows * max_runs", std::uint64_t{words[3]} * words[5], 1,
                      kMaxRunEntries);
  const std::uint64_t num_slots = (std::uint64_t{words[14]} + words[15] + words[20]) * words[8];
  if (num_slots > std::numeric_limits<std::uint32_t>::max())
    return OutOfRange(first + 56, "number of slots", num_slots, 1,
                      std::numeric_limits<std::uint32_t>::max());
  if (std::uint64_t{words[18]} * words[8] > std::numeric_limits<std::int32_t>::max())
    return OutOfRange(first + 72, "lane_blocks * block_tokens", std::uint64_t{words[18]} * words[8],
                      1, std::numeric_limits<std::int32_t>::max());
  offset_ = first + payload.size();
  return Done{};
}

Result<StepLogRecord> StepLogReader::Next() {
  if (ended_) return At(offset_, "bytes after the end record");
  std::span<const std::byte> payload;
  const Result<StepLogKind> kind = Frame(&payload);
  if (!kind) return kind.error();
  const std::uint64_t first = offset_ + sizeof(StepLogFrame);
  arrays_.resize(payload.size() / 8 + 1);
  if (!payload.empty()) std::memcpy(arrays_.data(), payload.data(), payload.size());
  Cursor cursor(std::as_bytes(std::span(arrays_)).first(payload.size()));
  StepLogRecord record;
  record.kind = *kind;
  const char* bad = nullptr;
  if (*kind == StepLogKind::kStep) {
    std::span<const StepHeader> header;
    std::uint64_t value = 0;
    std::uint64_t most = 0;
    if (!cursor.Take(1, &header)) return At(first, "the step's header is cut off");
    record.view.header = header.data();
    const char* const beyond = CountBeyond(header[0], header_.limits, &value, &most);
    if (beyond != nullptr) return OutOfRange(first, beyond, value, 0, most);
    bad = TakeStep(&cursor, header_.limits, &record.view, &runs_);
  } else {
    bad = TakeSmall(&cursor, &record);
  }
  if (bad != nullptr) return At(first, bad);
  if (cursor.left() != 0)
    return At(first, "record has " + std::to_string(cursor.left()) + " bytes too many");
  ++num_records_;
  if (*kind == StepLogKind::kEnd) {
    if (record.value != num_records_)
      return At(first, "the end counts " + std::to_string(record.value) + " records, the log has " +
                           std::to_string(num_records_));
    ended_ = true;
  }
  offset_ = first + payload.size();
  return record;
}

}  // namespace kvrm
