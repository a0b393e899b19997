// SPDX-License-Identifier: Apache-2.0
#include "step/step_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "step/step_builder.h"
#include "step/step_log_format.h"

namespace kvrm {
namespace {

// The writer looks at the ring so often while it is empty. A step takes longer than this, and 8 MiB
// of ring take some hundred steps to fill.
constexpr std::chrono::milliseconds kIdle{1};

std::uint64_t RingBytes(const StepLogHeader& header, const StepLogOptions& options) {
  return std::bit_ceil(std::max(options.ring_bytes, 4 * (MaxStepLogRecordBytes(header) + 64)));
}

void PutName(const std::string& name, std::vector<std::byte>* out) {
  char field[kStepLogNameBytes] = {};
  std::memcpy(field, name.data(), std::min(name.size(), kStepLogNameBytes - 1));
  const auto* const bytes = reinterpret_cast<const std::byte*>(field);
  out->insert(out->end(), bytes, bytes + sizeof(field));
}

void AppendFrame(StepLogKind kind, std::span<const std::byte> payload,
                 std::vector<std::byte>* out) {
  const StepLogFrame frame = {
      .kind = static_cast<std::uint32_t>(kind),
      .payload_bytes = static_cast<std::uint32_t>(payload.size()),
      .checksum = StepLogChecksum(static_cast<std::uint32_t>(kind), payload)};
  const auto* const bytes = reinterpret_cast<const std::byte*>(&frame);
  out->insert(out->end(), bytes, bytes + sizeof(frame));
  out->insert(out->end(), payload.begin(), payload.end());
}

}  // namespace

void AppendStepLogHeader(const StepLogHeader& header, std::vector<std::byte>* out) {
  const StepLimits& limits = header.limits;
  const std::uint32_t words[] = {kStepLogVersion,
                                 kStepVersion,
                                 header.has_lives ? kStepLogFlagLives : 0,
                                 limits.max_rows,
                                 limits.max_tokens,
                                 limits.max_runs,
                                 limits.max_groups,
                                 limits.max_samples,
                                 limits.block_tokens,
                                 limits.mirrored ? 1u : 0u,
                                 header.layout.num_layers,
                                 header.layout.num_kv_heads,
                                 header.layout.head_dim,
                                 static_cast<std::uint32_t>(header.layout.dtype),
                                 header.num_pool_blocks,
                                 header.num_window_blocks,
                                 header.num_layer_blocks,
                                 header.num_lanes,
                                 header.lane_blocks,
                                 header.ring_entries,
                                 header.num_host_blocks,
                                 header.max_parked};
  static_assert(std::size(words) == kStepLogHeaderWords);
  std::vector<std::byte> payload;
  const auto* const bytes = reinterpret_cast<const std::byte*>(words);
  payload.insert(payload.end(), bytes, bytes + sizeof(words));
  PutName(header.view, &payload);
  PutName(header.placement, &payload);
  const auto* const magic = reinterpret_cast<const std::byte*>(kStepLogMagic);
  out->insert(out->end(), magic, magic + sizeof(kStepLogMagic));
  AppendFrame(StepLogKind::kHeader, payload, out);
}

void AppendStepLogRecord(const StepLogHeader& header, const StepLogRecord& record,
                         std::vector<std::byte>* out) {
  CHECK(record.kind != StepLogKind::kHeader);
  std::vector<std::byte> payload;
  ForEachPieceOf(record, [&payload](const void* data, std::size_t bytes) {
    const auto* const from = static_cast<const std::byte*>(data);
    payload.insert(payload.end(), from, from + bytes);
  });
  CHECK(payload.size() + sizeof(StepLogFrame) <= MaxStepLogRecordBytes(header));
  AppendFrame(record.kind, payload, out);
}

// The ring holds frames and payloads back to back, in bytes numbered for ever upwards: byte n lies
// at n % size. The producer writes [head, ..) and publishes it with one release store.
struct StepLog::State {
  State(int fd_in, const StepLogHeader& header, const StepLogOptions& options)
      : fd(fd_in),
        ring_bytes(RingBytes(header, options)),
        max_record_bytes(MaxStepLogRecordBytes(header)),
        ring(std::make_unique<std::byte[]>(ring_bytes)),
        on_error(options.on_error) {
    AppendStepLogHeader(header, &pending);
    record.reserve(max_record_bytes);
  }
  ~State() {
    if (fd >= 0) ::close(fd);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void Put(const StepLogRecord& what) noexcept;
  void Copy(std::uint64_t* at, const void* data, std::size_t bytes) noexcept;
  void CopyOut(std::uint64_t at, void* data, std::size_t bytes) const noexcept;
  void PutFramed(const StepLogRecord& what, std::size_t payload_bytes, std::uint64_t* at) noexcept;
  void Run();
  void Drain();
  void Finish();
  void Write();
  void Fail(const char* what);

  int fd = -1;
  const std::uint64_t ring_bytes;
  const std::uint64_t max_record_bytes;
  const std::unique_ptr<std::byte[]> ring;
  const std::function<void(const std::string&)> on_error;

  // Producer.
  std::uint64_t num_unsaid = 0;  // lost since the last kGap
  bool closed = false;
  alignas(64) std::atomic<std::uint64_t> head{0};
  std::atomic<std::uint64_t> num_records{0};
  std::atomic<std::uint64_t> num_lost{0};

  // Writer.
  alignas(64) std::atomic<std::uint64_t> tail{0};
  std::atomic<std::uint64_t> num_bytes{0};
  std::atomic<bool> failed{false};
  std::atomic<bool> closing{false};
  std::string error;               // read after the thread has been joined
  std::vector<std::byte> pending;  // framed, not yet in the file
  std::vector<std::byte> record;   // payload taken out of the ring
  std::uint64_t num_written = 0;   // records in the file
  std::thread thread;
};

void StepLog::State::Copy(std::uint64_t* at, const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  const std::size_t offset = *at % ring_bytes;
  const std::size_t first = std::min<std::size_t>(bytes, ring_bytes - offset);
  std::memcpy(&ring[offset], data, first);
  if (first < bytes)
    std::memcpy(&ring[0], static_cast<const std::byte*>(data) + first, bytes - first);
  *at += bytes;
}

void StepLog::State::CopyOut(std::uint64_t at, void* data, std::size_t bytes) const noexcept {
  const std::size_t offset = at % ring_bytes;
  const std::size_t first = std::min<std::size_t>(bytes, ring_bytes - offset);
  std::memcpy(data, &ring[offset], first);
  if (first < bytes) std::memcpy(static_cast<std::byte*>(data) + first, &ring[0], bytes - first);
}

void StepLog::State::PutFramed(const StepLogRecord& what, std::size_t payload_bytes,
                               std::uint64_t* at) noexcept {
  // The checksum is the writer's work.
  const StepLogFrame frame = {.kind = static_cast<std::uint32_t>(what.kind),
                              .payload_bytes = static_cast<std::uint32_t>(payload_bytes)};
  Copy(at, &frame, sizeof(frame));
  ForEachPieceOf(what, [this, at](const void* data, std::size_t bytes) { Copy(at, data, bytes); });
}

void StepLog::State::Put(const StepLogRecord& what) noexcept {
  CHECK(!closed);
  std::uint64_t at = head.load(std::memory_order_relaxed);
  const std::uint64_t room = ring_bytes - (at - tail.load(std::memory_order_acquire));
  const std::size_t payload_bytes = PayloadBytes(what);
  const std::size_t gap_bytes = num_unsaid > 0 ? sizeof(StepLogFrame) + sizeof(std::uint64_t) : 0;
  if (failed.load(std::memory_order_relaxed) ||
      gap_bytes + sizeof(StepLogFrame) + payload_bytes > room) {
    ++num_unsaid;
    num_lost.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (num_unsaid > 0) {
    PutFramed({.kind = StepLogKind::kGap, .value = num_unsaid}, sizeof(std::uint64_t), &at);
    num_unsaid = 0;
  }
  PutFramed(what, payload_bytes, &at);
  num_records.fetch_add(1, std::memory_order_relaxed);
  head.store(at, std::memory_order_release);
}

void StepLog::State::Fail(const char* what) {
  error = std::string("the descriptor log ended: ") + what + ": " + std::strerror(errno);
  failed.store(true, std::memory_order_relaxed);
  pending.clear();
  if (on_error) on_error(error);
}

void StepLog::State::Write() {
  std::size_t done = 0;
  while (done < pending.size()) {
    const ssize_t put = ::write(fd, pending.data() + done, pending.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return Fail("cannot write");
    done += static_cast<std::size_t>(put);
  }
  num_bytes.fetch_add(done, std::memory_order_relaxed);
  pending.clear();
}

// Takes what is in the ring, gives it checksums, writes it.
void StepLog::State::Drain() {
  constexpr std::size_t kWriteBytes = 256 * 1024;
  std::uint64_t at = tail.load(std::memory_order_relaxed);
  const std::uint64_t end = head.load(std::memory_order_acquire);
  while (at < end) {
    StepLogFrame frame;
    CopyOut(at, &frame, sizeof(frame));
    record.resize(frame.payload_bytes);
    CopyOut(at + sizeof(frame), record.data(), record.size());
    at += sizeof(frame) + frame.payload_bytes;
    tail.store(at, std::memory_order_release);
    if (failed.load(std::memory_order_relaxed)) continue;
    AppendFrame(StepLogKind{frame.kind}, record, &pending);
    ++num_written;
    if (pending.size() >= kWriteBytes) Write();
  }
  if (!failed.load(std::memory_order_relaxed) && !pending.empty()) Write();
}

void StepLog::State::Run() {
  for (;;) {
    const bool last = closing.load(std::memory_order_acquire);
    const std::uint64_t before = tail.load(std::memory_order_relaxed);
    Drain();
    if (last) return Finish();
    if (tail.load(std::memory_order_relaxed) == before) std::this_thread::sleep_for(kIdle);
  }
}

void StepLog::State::Finish() {
  const auto append = [this](StepLogKind kind, std::uint64_t value) {
    std::byte bytes[sizeof(value)];
    std::memcpy(bytes, &value, sizeof(value));
    AppendFrame(kind, bytes, &pending);
    ++num_written;
  };
  if (!failed.load(std::memory_order_relaxed)) {
    if (num_unsaid > 0) append(StepLogKind::kGap, num_unsaid);
    append(StepLogKind::kEnd, num_written + 1);
    Write();
  }
  const int status = ::close(fd);
  fd = -1;
  if (status != 0 && !failed.load(std::memory_order_relaxed)) Fail("cannot close");
}

Result<std::unique_ptr<StepLog>> StepLog::Create(const std::string& path,
                                                 const StepLogHeader& header,
                                                 const StepLogOptions& options) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) {
    return Error{ErrorCode::kIo,
                 "cannot create the descriptor log " + path + ": " + std::strerror(errno)};
  }
  std::unique_ptr<StepLog> log(new StepLog(std::make_unique<State>(fd, header, options)));
  State& state = *log->state_;
  state.Write();
  if (state.failed.load(std::memory_order_relaxed)) {
    state.closed = true;
    return Error{ErrorCode::kIo, path + ": " + state.error};
  }
  try {
    state.thread = std::thread([&state] { state.Run(); });
  } catch (const std::system_error& error) {
    state.closed = true;
    return Error{ErrorCode::kIo,
                 std::string("cannot start the descriptor log's thread: ") + error.what()};
  }
  return log;
}

StepLog::StepLog(std::unique_ptr<State> state) : state_(std::move(state)) {}

StepLog::~StepLog() {
  if (!state_->closed) static_cast<void>(Close().has_value());
}

Status StepLog::Close() {
  State& state = *state_;
  if (!state.closed) {
    state.closed = true;
    state.closing.store(true, std::memory_order_release);
    state.thread.join();
  }
  if (state.failed.load(std::memory_order_relaxed)) return Error{ErrorCode::kIo, state.error};
  return Done{};
}

void StepLog::Opened(const StepLogOpened& opened) noexcept {
  state_->Put({.kind = StepLogKind::kOpened, .opened = opened});
}

void StepLog::Trimmed(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept {
  state_->Put({.kind = StepLogKind::kTrimmed, .seq = seq, .from = from, .to = to});
}

void StepLog::Parked(SeqId seq, ParkedId parked) noexcept {
  state_->Put({.kind = StepLogKind::kParked, .value = Index(parked), .seq = seq});
}

void StepLog::Resumed(SeqId seq, ParkedId parked) noexcept {
  state_->Put({.kind = StepLogKind::kResumed, .value = Index(parked), .seq = seq});
}

void StepLog::Step(const StepView& step) noexcept {
  state_->Put({.kind = StepLogKind::kStep, .view = step});
}

void StepLog::Landed(StepId step, std::uint32_t deadline) noexcept {
  state_->Put({.kind = StepLogKind::kLanded, .step = step, .value = deadline});
}

void StepLog::Latched(StepId step) noexcept {
  state_->Put({.kind = StepLogKind::kLatched, .step = step});
}

void StepLog::Retired(const StepView& step) noexcept {
  state_->Put({.kind = StepLogKind::kRetired,
               .step = step.header->step,
               .value = StepBuilder::Checksum(step)});
}

void StepLog::Sampled(StepId step, std::span<const std::int32_t> tokens) noexcept {
  state_->Put({.kind = StepLogKind::kSampled, .step = step, .tokens = tokens});
}

StepLogStats StepLog::stats() const noexcept {
  return {.num_records = state_->num_records.load(std::memory_order_relaxed),
          .num_lost = state_->num_lost.load(std::memory_order_relaxed),
          .num_bytes = state_->num_bytes.load(std::memory_order_relaxed),
          .failed = state_->failed.load(std::memory_order_relaxed)};
}

std::uint64_t StepLog::reserved_bytes() const noexcept {
  return state_->ring_bytes + state_->max_record_bytes;
}

std::uint64_t StepLog::RequiredBytes(const StepLogHeader& header, const StepLogOptions& options) {
  return RingBytes(header, options) + MaxStepLogRecordBytes(header);
}

}  // namespace kvrm
