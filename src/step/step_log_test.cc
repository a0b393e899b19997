// SPDX-License-Identifier: Apache-2.0
#include "step/step_log.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/rng.h"
#include "step/step_builder.h"
#include "step/step_log_format.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

constexpr StepLimits kLimits = {.max_rows = 2,
                                .max_tokens = 8,
                                .max_runs = 2,
                                .max_groups = 2,
                                .max_samples = 2,
                                .block_tokens = 4,
                                .mirrored = false};

StepLogHeader Header() {
  return {.limits = kLimits,
          .layout = {.num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .block_tokens = 4},
          .num_pool_blocks = 8,
          .num_lanes = 2,
          .lane_blocks = 4,
          .ring_entries = 2,
          .max_parked = 3,
          .has_lives = true,
          .view = "extents",
          .placement = "in-place"};
}

std::string TempPath(const std::string& name) {
  return (std::filesystem::temp_directory_path() /
          (name + "." + std::to_string(static_cast<unsigned long>(::getpid()))))
      .string();
}

// Removes the file when the test ends.
struct TempFile {
  explicit TempFile(const std::string& name) : path(TempPath(name)) {}
  ~TempFile() { std::remove(path.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string path;
};

// Runs `num_steps` steps of two sequences, and tells `put` of every record of them.
template <typename Put>
void RunTwoSequences(std::uint32_t num_steps, Put put) {
  StepBuilder builder(kLimits, 2);
  for (const std::uint32_t s : {0u, 1u})
    put({.kind = StepLogKind::kOpened, .opened = {.seq = SeqId{s}, .request = 7 + s}});
  for (std::uint32_t step = 0; step < num_steps; ++step) {
    const std::uint32_t position = step % 8;
    ASSERT_TRUE(builder.Begin());
    for (const std::uint32_t s : {0u, 1u}) {
      const std::array<std::int32_t, 1> tokens = {static_cast<std::int32_t>(10 * s + step)};
      const std::array<Extent, 1> runs = {Extent{BlockId{1 + 3 * s}, 2}};
      builder.AddRow({.seq = SeqId{s},
                      .first_position = position,
                      .tokens = tokens,
                      .runs = runs,
                      .num_samples = 1});
    }
    if (step == 0) builder.AddGroup({.source = BlockId{3}, .target = BlockId{6}, .num_blocks = 1});
    const StepView view = builder.Commit(0, 2);
    put({.kind = StepLogKind::kStep, .view = view});
    put({.kind = StepLogKind::kLanded, .step = view.header->step});
    put({.kind = StepLogKind::kLatched, .step = view.header->step});
    builder.Latch();
    const std::array<std::int32_t, 2> sampled = {1, -1};
    put({.kind = StepLogKind::kSampled, .step = view.header->step, .tokens = sampled});
    put({.kind = StepLogKind::kRetired,
         .view = view,
         .step = view.header->step,
         .value = view.header->checksum});
    builder.Retire();
  }
}

std::vector<std::byte> SmallLog(std::uint32_t num_steps = 3) {
  std::vector<std::byte> bytes;
  AppendStepLogHeader(Header(), &bytes);
  std::uint64_t num_records = 0;
  RunTwoSequences(num_steps, [&](const StepLogRecord& record) {
    AppendStepLogRecord(Header(), record, &bytes);
    ++num_records;
  });
  AppendStepLogRecord(Header(), {.kind = StepLogKind::kTrimmed, .seq = SeqId{1}, .to = 4}, &bytes);
  AppendStepLogRecord(Header(), {.kind = StepLogKind::kParked, .value = 2, .seq = SeqId{1}},
                      &bytes);
  AppendStepLogRecord(Header(), {.kind = StepLogKind::kResumed, .value = 2, .seq = SeqId{0}},
                      &bytes);
  AppendStepLogRecord(Header(), {.kind = StepLogKind::kEnd, .value = num_records + 4}, &bytes);
  return bytes;
}

// Reads and verifies to the end or to the first error, which is returned; empty: all is well.
std::string ReadAll(std::span<const std::byte> bytes, std::uint64_t* num_records = nullptr) {
  Result<StepLogReader> reader = StepLogReader::Open(bytes);
  if (!reader) return reader.error().message;
  StepVerifier verifier(reader->header());
  while (!reader->done()) {
    const Result<StepLogRecord> record = reader->Next();
    if (!record) return record.error().message;
    if (!verifier.Consume(*record)) return verifier.violation()->Text();
  }
  if (num_records != nullptr) *num_records = verifier.totals().num_records;
  return "";
}

TEST(StepLogReader, ReadsBackWhatWasWritten) {
  const std::vector<std::byte> bytes = SmallLog();
  Result<StepLogReader> reader = StepLogReader::Open(bytes);
  ASSERT_TRUE(reader.has_value());
  const StepLogHeader& header = reader->header();
  EXPECT_EQ(header.limits.max_tokens, 8u);
  EXPECT_EQ(header.layout.num_layers, 3u);
  EXPECT_EQ(header.num_pool_blocks, 8u);
  EXPECT_EQ(header.lane_blocks, 4u);
  EXPECT_TRUE(header.has_lives);
  EXPECT_EQ(header.view, "extents");
  EXPECT_EQ(header.placement, "in-place");
  std::vector<StepLogKind> kinds;
  std::vector<std::byte> again;
  AppendStepLogHeader(header, &again);
  while (!reader->done()) {
    const Result<StepLogRecord> record = reader->Next();
    ASSERT_TRUE(record.has_value()) << record.error().message;
    kinds.push_back(record->kind);
    AppendStepLogRecord(header, *record, &again);
    if (record->kind != StepLogKind::kStep) continue;
    EXPECT_EQ(record->view.header->checksum, StepBuilder::Checksum(record->view));
    EXPECT_EQ(record->view.RowRuns(1)[0], (Extent{BlockId{4}, 2}));
  }
  EXPECT_EQ(kinds.size(), 2u + 3 * 5 + 4);
  EXPECT_EQ(kinds.back(), StepLogKind::kEnd);
  EXPECT_EQ(again, bytes);
  EXPECT_EQ(ReadAll(bytes), "");
}

TEST(StepLogReader, CutOffAnywhereItSaysWhere) {
  const std::vector<std::byte> bytes = SmallLog();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::string error = ReadAll(std::span(bytes).first(size));
    ASSERT_NE(error, "") << size;
    EXPECT_TRUE(error.starts_with("byte ")) << error;
    if (size < sizeof(kStepLogMagic)) continue;
    EXPECT_NE(error.find("cut off"), std::string::npos) << size << ": " << error;
  }
}

TEST(StepLogReader, EveryFlippedBitIsFound) {
  std::vector<std::byte> bytes = SmallLog(1);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= std::byte{1} << bit;
      const std::string error = ReadAll(bytes);
      ASSERT_TRUE(error.starts_with("byte ")) << i << ": " << error;
      bytes[i] ^= std::byte{1} << bit;
    }
  }
  EXPECT_EQ(ReadAll(bytes), "");
}

// With a checksum that holds, so that the fields themselves are looked at: an error or not, but
// never out of bounds.
TEST(StepLogReader, AnyWordOfAnyRecordMayBeAnything) {
  const std::vector<std::byte> good = SmallLog(2);
  std::uint64_t num_refused = 0;
  std::uint64_t num_tried = 0;
  std::size_t at = sizeof(kStepLogMagic);
  while (at < good.size()) {
    StepLogFrame frame;
    std::memcpy(&frame, &good[at], sizeof(frame));
    const std::size_t payload = at + sizeof(frame);
    for (std::size_t word = 0; word < frame.payload_bytes / 4; ++word) {
      for (const std::uint32_t value : {0u, 1u, 5u, 0x7fffffffu, 0xffffffffu}) {
        std::vector<std::byte> bytes = good;
        std::memcpy(&bytes[payload + 4 * word], &value, sizeof(value));
        StepLogFrame sealed = frame;
        sealed.checksum =
            StepLogChecksum(frame.kind, std::span(bytes).subspan(payload, frame.payload_bytes));
        std::memcpy(&bytes[at], &sealed, sizeof(sealed));
        ++num_tried;
        // A pool of that size would be refused by who reads the log; here it would only take time.
        const Result<StepLogReader> reader = StepLogReader::Open(bytes);
        if (reader && StepVerifier::RequiredBytes(reader->header()) > (1u << 20)) continue;
        num_refused += ReadAll(bytes).empty() ? 0u : 1u;
      }
    }
    at = payload + frame.payload_bytes;
  }
  EXPECT_GT(num_tried, 700u);
  EXPECT_GT(num_refused, num_tried / 2);
}

TEST(StepLogReader, NamesTheFieldAndTheByte) {
  std::vector<std::byte> bytes;
  StepLogHeader header = Header();
  header.limits.block_tokens = 5000;
  AppendStepLogHeader(header, &bytes);
  const Result<StepLogReader> reader = StepLogReader::Open(bytes);
  ASSERT_FALSE(reader.has_value());
  EXPECT_EQ(reader.error().message, "byte 56: block_tokens is 5000, not 1 to 4096");

  std::vector<std::byte> trailing = SmallLog();
  const std::size_t size = trailing.size();
  trailing.push_back(std::byte{0});
  EXPECT_EQ(ReadAll(trailing), "byte " + std::to_string(size) + ": bytes after the end record");
}

TEST(StepLog, FileOfFiveHundredStepsVerifies) {
  const TempFile file("kvrm_step_log_test");
  std::uint64_t num_put = 0;
  {
    auto log = StepLog::Create(file.path, Header());
    ASSERT_TRUE(log.has_value()) << log.error().message;
    StepLog& to = **log;
    RunTwoSequences(500, [&](const StepLogRecord& record) {
      ++num_put;
      switch (record.kind) {
        case StepLogKind::kOpened:
          return to.Opened(record.opened);
        case StepLogKind::kStep:
          return to.Step(record.view);
        case StepLogKind::kLanded:
          return to.Landed(record.step, static_cast<std::uint32_t>(record.value));
        case StepLogKind::kLatched:
          return to.Latched(record.step);
        case StepLogKind::kSampled:
          return to.Sampled(record.step, record.tokens);
        case StepLogKind::kRetired:
          return to.Retired(record.view);
        default:
          return;
      }
    });
    EXPECT_TRUE(to.Close().has_value());
    EXPECT_EQ(to.stats().num_lost, 0u);
    EXPECT_EQ(to.stats().num_bytes, std::filesystem::file_size(file.path));
    EXPECT_TRUE(to.Close().has_value());
  }
  const auto mode = std::filesystem::status(file.path).permissions();
  EXPECT_EQ(mode, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  const Result<std::string> content = ReadFile(file.path, 1 << 24);
  ASSERT_TRUE(content.has_value());
  std::uint64_t num_records = 0;
  EXPECT_EQ(ReadAll(std::as_bytes(std::span(*content)), &num_records), "");
  EXPECT_EQ(num_records, num_put + 1);
}

TEST(StepLog, FullRingLosesRecordsAndSaysHowMany) {
  const TempFile file("kvrm_step_log_full");
  auto log = StepLog::Create(file.path, Header(), {.ring_bytes = 1});
  ASSERT_TRUE(log.has_value());
  // Faster than the writer looks.
  while ((*log)->stats().num_lost == 0) {
    for (int i = 0; i < 1000; ++i)
      (*log)->Landed(StepId{1}, 0);
  }
  const std::uint64_t num_records = (*log)->stats().num_records;
  while ((*log)->stats().num_records == num_records) {
    std::this_thread::yield();
    (*log)->Landed(StepId{1}, 0);
  }
  ASSERT_TRUE((*log)->Close().has_value());
  const StepLogStats stats = (*log)->stats();
  const Result<std::string> content = ReadFile(file.path, std::uint64_t{1} << 30);
  ASSERT_TRUE(content.has_value());
  Result<StepLogReader> reader = StepLogReader::Open(std::as_bytes(std::span(*content)));
  ASSERT_TRUE(reader.has_value());
  std::uint64_t num_lost = 0;
  std::uint64_t num_landed = 0;
  while (!reader->done()) {
    const Result<StepLogRecord> record = reader->Next();
    ASSERT_TRUE(record.has_value()) << record.error().message;
    if (record->kind == StepLogKind::kGap) num_lost += record->value;
    if (record->kind == StepLogKind::kLanded) ++num_landed;
  }
  EXPECT_EQ(num_lost, stats.num_lost);
  EXPECT_EQ(num_landed, stats.num_records);
}

TEST(StepLog, FullDiskEndsTheLogAndNothingElse) {
  const auto refused = StepLog::Create("/dev/full", Header());
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("No space left"), std::string::npos);
  const auto nowhere = StepLog::Create("/nonexistent/log", Header());
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_NE(nowhere.error().message.find("cannot create"), std::string::npos);
}

// The disk becomes full later: the log's file may grow to 4 KiB.
TEST(StepLogDeathTest, DiskThatFillsUpIsToldOnce) {
  const TempFile file("kvrm_step_log_limit");
  const auto body = [&file] {
    const rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);
    std::atomic<int> num_errors{0};
    auto log = StepLog::Create(file.path, Header(),
                               {.on_error = [&num_errors](const std::string&) { ++num_errors; }});
    if (!log) ::_exit(10);
    while (!(*log)->stats().failed)
      (*log)->Landed(StepId{1}, 0);
    const std::uint64_t num_lost = (*log)->stats().num_lost;
    for (int i = 0; i < 1000; ++i)
      (*log)->Landed(StepId{1}, 0);
    if ((*log)->stats().num_lost != num_lost + 1000) ::_exit(11);
    const Status status = (*log)->Close();
    if (status.has_value() || num_errors != 1) ::_exit(12);
    if (status.error().message.find("File too large") == std::string::npos) ::_exit(13);
    ::_exit(0);
  };
  EXPECT_EXIT(body(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace kvrm
