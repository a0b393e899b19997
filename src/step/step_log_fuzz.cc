// SPDX-License-Identifier: Apache-2.0
// libFuzzer: any bytes as a descriptor log. What is read is verified and, when sound, replayed.
//
// Frames' checksums are made to hold first: else nothing behind them would ever be reached.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "step/step_builder.h"
#include "step/step_log.h"
#include "step/step_log_format.h"
#include "step/step_replay.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

void SealFrames(std::vector<std::byte>& bytes) {
  std::size_t at = sizeof(kStepLogMagic);
  while (at + sizeof(StepLogFrame) <= bytes.size()) {
    StepLogFrame frame;
    std::memcpy(&frame, &bytes[at], sizeof(frame));
    const std::size_t payload = at + sizeof(frame);
    if (frame.payload_bytes > bytes.size() - payload) return;
    frame.checksum =
        StepLogChecksum(frame.kind, std::span(bytes).subspan(payload, frame.payload_bytes));
    std::memcpy(&bytes[at], &frame, sizeof(frame));
    at = payload + frame.payload_bytes;
  }
}

// The checksum of the descriptor itself, for the same reason.
StepHeader Sealed(const StepView& view) {
  StepHeader header = *view.header;
  StepView copy = view;
  copy.header = &header;
  header.checksum = StepBuilder::Checksum(copy);
  return header;
}

void Read(std::span<const std::byte> bytes) {
  constexpr std::uint64_t kMaxBytes = 4 << 20;
  Result<StepLogReader> reader = StepLogReader::Open(bytes);
  if (!reader) {
    CHECK(reader.error().message.starts_with("byte "));
    return;
  }
  if (StepVerifier::RequiredBytes(reader->header()) > kMaxBytes) return;
  StepVerifier verifier(reader->header());
  StepReplay replay(reader->header());
  bool replays = true;
  while (!reader->done()) {
    Result<StepLogRecord> record = reader->Next();
    if (!record) {
      CHECK(record.error().message.starts_with("byte "));
      return;
    }
    StepHeader header = {};
    if (record->kind == StepLogKind::kStep) {
      header = Sealed(record->view);
      record->view.header = &header;
    }
    if (!verifier.Consume(*record)) {
      CHECK(!verifier.violation()->Text().empty());
      return;
    }
    replays = replays && replay.Consume(*record);
  }
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* const bytes = reinterpret_cast<const std::byte*>(data);
  kvrm::Read({bytes, size});
  std::vector<std::byte> sealed(bytes, bytes + size);
  kvrm::SealFrames(sealed);
  kvrm::Read(sealed);
  return 0;
}
