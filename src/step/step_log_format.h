// SPDX-License-Identifier: Apache-2.0
// The layout of a record, in one place for those who write it: the ring, and bytes in memory.
// The grammar is in docs/formats.md; the reader, which trusts nothing, is step_log_reader.cc.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/rng.h"
#include "step/step_log.h"

namespace kvrm {

static_assert(std::endian::native == std::endian::little, "the log is written as memory lies");

inline constexpr char kStepLogMagic[8] = {'K', 'V', 'R', 'M', 'L', 'O', 'G', '\n'};
inline constexpr std::size_t kStepLogNameBytes = 16;
inline constexpr std::uint32_t kStepLogFlagLives = 1;
inline constexpr std::uint32_t kStepLogHeaderWords = 22;
inline constexpr std::uint32_t kStepLogHeaderBytes =
    4 * kStepLogHeaderWords + 2 * static_cast<std::uint32_t>(kStepLogNameBytes);

// What stands before every payload.
struct StepLogFrame {
  std::uint32_t kind = 0;
  std::uint32_t payload_bytes = 0;  // a multiple of 4
  std::uint64_t checksum = 0;       // StepLogChecksum of the two above and the payload
};
static_assert(sizeof(StepLogFrame) == 16);

// Over whole 32-bit words, two at a time.
inline std::uint64_t StepLogChecksum(std::uint32_t kind, std::span<const std::byte> payload) {
  std::uint64_t state = Mix64(std::uint64_t{kind} << 32 | payload.size());
  const std::byte* bytes = payload.data();
  std::size_t left = payload.size();
  for (; left >= 8; left -= 8, bytes += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, 8);
    state = Mix64(state ^ word);
  }
  if (left >= 4) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes, 4);
    state = Mix64(state ^ word);
  }
  return state;
}

// Calls put(data, bytes) for each piece of the record's payload, in order. Not for kHeader.
template <typename Put>
void ForEachPieceOf(const StepLogRecord& record, Put put) {
  const auto put_words = [&put](std::initializer_list<std::uint32_t> words) {
    for (const std::uint32_t word : words)
      put(&word, sizeof(word));
  };
  const auto put_long = [&put](std::uint64_t value) { put(&value, sizeof(value)); };
  const auto put_span = [&put](const auto& items) { put(items.data(), items.size_bytes()); };
  switch (record.kind) {
    case StepLogKind::kOpened:
      put_words({Index(record.opened.seq), Index(record.opened.parent), record.opened.num_tokens,
                 static_cast<std::uint32_t>(record.opened.tokens.size())});
      put_long(record.opened.request);
      put_long(record.opened.salt);
      put_span(record.opened.tokens);
      return;
    case StepLogKind::kTrimmed:
      put_words({Index(record.seq), record.from, record.to});
      return;
    case StepLogKind::kParked:
    case StepLogKind::kResumed:
      put_words({Index(record.seq), static_cast<std::uint32_t>(record.value)});
      return;
    case StepLogKind::kStep: {
      const StepView& view = record.view;
      put(view.header, sizeof(StepHeader));
      put_span(view.token_ids);
      put_span(view.positions);
      put_span(view.slots);
      put_span(view.mirrors);
      put_span(view.row_start);
      put_span(view.row_seq);
      put_span(view.num_runs);
      for (std::uint32_t row = 0; row < view.num_runs.size(); ++row)
        put_span(view.RowRuns(row));
      put_span(view.sample_token);
      put_span(view.groups);
      return;
    }
    case StepLogKind::kLatched:
      put_long(Index(record.step));
      return;
    case StepLogKind::kLanded:
    case StepLogKind::kRetired:
      put_long(Index(record.step));
      put_long(record.value);
      return;
    case StepLogKind::kSampled:
      put_long(Index(record.step));
      put_words({static_cast<std::uint32_t>(record.tokens.size())});
      put_span(record.tokens);
      return;
    case StepLogKind::kGap:
    case StepLogKind::kEnd:
      put_long(record.value);
      return;
    case StepLogKind::kHeader:
      return;
  }
}

inline std::size_t PayloadBytes(const StepLogRecord& record) {
  std::size_t bytes = 0;
  ForEachPieceOf(record, [&bytes](const void*, std::size_t size) { bytes += size; });
  return bytes;
}

// Bytes of the largest record within these limits, frame included.
inline std::uint64_t MaxStepLogRecordBytes(const StepLogHeader& header) {
  const StepLimits& limits = header.limits;
  const std::uint64_t step = sizeof(StepHeader) + std::uint64_t{limits.max_tokens} * 16 +
                             std::uint64_t{limits.max_rows} * 12 + 8 +
                             std::uint64_t{limits.max_rows} * limits.max_runs * sizeof(Extent) +
                             std::uint64_t{limits.max_samples} * 8 +
                             std::uint64_t{limits.max_groups} * sizeof(TransferGroup);
  const std::uint64_t opened =
      32 + std::uint64_t{header.lane_blocks} * limits.block_tokens * sizeof(std::int32_t);
  return sizeof(StepLogFrame) + (step > opened ? step : opened);
}

}  // namespace kvrm
