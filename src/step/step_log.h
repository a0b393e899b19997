// SPDX-License-Identifier: Apache-2.0
// StepLog: a record of every descriptor and of what became of it, for `kvrm verify`.
//
// The step path copies a record into a ring of bytes reserved at start and goes on; a thread of the
// log drains the ring to the file. The step path never blocks, allocates or fails for the log: a
// record that does not fit is dropped and counted, and a kGap says so as soon as there is room. A
// write error (a full disk) ends the log, is told once, and disturbs nothing else.
//
// The file is a grammar in docs/formats.md: a header, then records, each with its length and a
// checksum. It holds token ids, that is, what users wrote: it is created readable by its owner
// only.
//
// Threading: StepLog's verbs on the engine thread, on_error on the log's own. StepLogReader: one
// thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "step/layout.h"
#include "step/step.h"

namespace kvrm {

inline constexpr std::uint32_t kStepLogVersion = 3;

enum class StepLogKind : std::uint32_t {
  kHeader = 1,
  kOpened,   // a sequence begins: its identity, and what it takes over
  kTrimmed,  // whole blocks inside these positions may be holes from now on
  kStep,     // a committed descriptor, whole
  kLanded,   // copies of this epoch up to a deadline, and all before, are visible to the executor
  kLatched,  // the executor has taken the step
  kRetired,  // the executor is done with it
  kSampled,  // the tokens drawn from its logits
  kGap,      // so many records were lost here
  kEnd,      // the log was closed
  kParked,   // a sequence has left for the host tier, under this number
  kResumed,  // a sequence begins with the history that was parked under this number
};

// The geometry that everything else is checked against.
struct StepLogHeader {
  StepLimits limits;
  KvLayout layout;
  std::uint32_t num_pool_blocks = 0;    // sentinel included
  std::uint32_t num_window_blocks = 0;  // numbered after the pool's
  std::uint32_t num_layer_blocks = 0;   // of one layer buffer, sentinel included; 0: none
  std::uint32_t num_lanes = 0;          // sequences
  std::uint32_t lane_blocks = 0;        // most blocks of a sequence, and blocks of its window
  std::uint32_t ring_entries = 0;       // most steps committed and not retired
  std::uint32_t num_host_blocks = 0;    // of the host tier, numbered from 1
  std::uint32_t max_parked = 0;         // histories there
  // kOpened and kTrimmed are complete: a sequence without the one or a hole without the other is
  // a violation. Else a row at position 0 begins a sequence and holes are believed.
  bool has_lives = false;
  std::string view = {};  // names, at most 15 bytes
  std::string placement = {};
};

inline constexpr SeqId kNoParent{~std::uint32_t{0}};

// A sequence begins with the first `num_tokens` of `parent` (Fork), or with `tokens`, which it has
// found in the prefix cache, or empty.
struct StepLogOpened {
  SeqId seq{};
  SeqId parent = kNoParent;
  std::uint32_t num_tokens = 0;
  std::uint64_t request = 0;                  // whose it is: the same after a preemption
  std::uint64_t salt = 0;                     // content of another salt must not be read
  std::span<const std::int32_t> tokens = {};  // [num_tokens], or empty with a parent
};

struct StepLogOptions {
  // Of the ring; raised to hold four of the largest records. 8 MiB are hundreds of steps.
  std::uint64_t ring_bytes = 8 * 1024 * 1024;
  // Called at most once, on the log's thread, with one line. Must not block.
  std::function<void(const std::string& message)> on_error = {};
};

struct StepLogStats {
  std::uint64_t num_records = 0;  // taken into the ring
  std::uint64_t num_lost = 0;     // dropped: the ring was full, or the log had ended
  std::uint64_t num_bytes = 0;    // written to the file
  bool failed = false;
};

class StepLog {
 public:
  // Creates or truncates the file and writes the header. Errors: kIo with the system's reason.
  static Result<std::unique_ptr<StepLog>> Create(const std::string& path,
                                                 const StepLogHeader& header,
                                                 const StepLogOptions& options = {});
  // Closes.
  ~StepLog();
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;

  void Opened(const StepLogOpened& opened) noexcept;
  void Trimmed(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept;
  void Parked(SeqId seq, ParkedId parked) noexcept;
  void Resumed(SeqId seq, ParkedId parked) noexcept;
  void Step(const StepView& step) noexcept;
  // Of the step, copies whose before_layer is at most this.
  void Landed(StepId step, std::uint32_t deadline) noexcept;
  void Latched(StepId step) noexcept;
  // Before its memory is reused: what it holds now is summed up anew, for D2.
  void Retired(const StepView& step) noexcept;
  // One for each sample of the step; -1: none was drawn.
  void Sampled(StepId step, std::span<const std::int32_t> tokens) noexcept;

  // Waits until everything is in the file, and ends it. Nothing is taken afterwards. Returns what
  // went wrong, if anything did since Create.
  Status Close();

  // Any thread.
  StepLogStats stats() const noexcept;
  std::uint64_t reserved_bytes() const noexcept;
  // Of a log that Create would make.
  static std::uint64_t RequiredBytes(const StepLogHeader& header, const StepLogOptions& options);

 private:
  struct State;
  explicit StepLog(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// One record as read. What `kind` does not use is empty; spans are valid until the next Next.
struct StepLogRecord {
  StepLogKind kind{};
  StepView view = {};  // kStep
  StepId step{};       // kLanded, kLatched, kRetired, kSampled
  // kLanded: the deadline; kRetired: the checksum; kGap, kEnd: records; kParked, kResumed: the
  // number
  std::uint64_t value = 0;
  StepLogOpened opened = {};  // kOpened
  SeqId seq{};                // kTrimmed, kParked, kResumed
  std::uint32_t from = 0;     // kTrimmed
  std::uint32_t to = 0;
  std::span<const std::int32_t> tokens = {};  // kSampled
};

// Total: any bytes give records or an error that names the byte and the field. A view that is
// returned fits the header's limits; whether it makes sense is for StepVerifier to say.
class StepLogReader {
 public:
  // `bytes` outlive the reader.
  static Result<StepLogReader> Open(std::span<const std::byte> bytes);

  const StepLogHeader& header() const { return header_; }
  // Whether kEnd has been read and nothing follows it.
  bool done() const { return ended_ && offset_ == bytes_.size(); }
  // Byte offset of the next record.
  std::uint64_t offset() const { return offset_; }
  // Requires: not done(). After an error the reader stays where it is. kIo: the log ends without
  // kEnd, as that of a process that was killed does.
  Result<StepLogRecord> Next();

 private:
  explicit StepLogReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  Result<StepLogKind> Frame(std::span<const std::byte>* payload) const;
  Status ReadHeader();

  std::span<const std::byte> bytes_;
  std::uint64_t offset_ = 0;
  bool ended_ = false;
  StepLogHeader header_;
  std::uint64_t num_records_ = 0;
  std::vector<std::uint64_t> arrays_;  // the payload of the last record, aligned
  std::vector<Extent> runs_;           // its runs, spread to the stride of a view
};

// For tests and tools that write a log into memory: the bytes of one framed record.
void AppendStepLogRecord(const StepLogHeader& header, const StepLogRecord& record,
                         std::vector<std::byte>* out);
// The bytes before the first record.
void AppendStepLogHeader(const StepLogHeader& header, std::vector<std::byte>* out);

}  // namespace kvrm
