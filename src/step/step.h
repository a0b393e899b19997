// SPDX-License-Identifier: Apache-2.0
// The step descriptor: everything an executor may know about one step.
//
// The engine builds it, commits it once, and never touches it again until the step is retired. It
// is plain memory of fixed layout at a fixed address, so a captured graph can read it and a test
// can compare two of them byte by byte. StepView is how code reads that memory; StepBuilder
// (step/step_builder.h) is the only writer.
//
// Rows [0, num_rows) are live, rows [num_rows, bucket_rows) are padding: one run of one block, the
// sentinel. A row's tokens are token_ids[row_start[r] .. row_start[r + 1]); its context after this
// step is the position of its last token plus one, not stored twice. A row's history lies in
// runs[r][0 .. num_runs[r]) in token order: token t of the sequence is in the run that covers block
// index t / block_tokens. A run of a live row that starts at the sentinel is a hole: these blocks
// of the history were dropped (KvCache::Trim) and their positions are not attended.
//
// Where a row reads and where its tokens are written are two questions:
//   slots    the tokens' home in the pool, always written
//   runs     what attention reads. In the views extents and paged these are the home blocks
//            themselves; else blocks of a window, numbered after the pool's: window blocks
//            [num_pool_blocks + lane * L, .. + L) belong to lane (sequence) `lane`, L blocks each
//   mirrors  with kStepMirrored: the same token's slot in the window, written beside its home
// With kStepLayerWindows runs name blocks of the per-layer buffers instead: block b of layer l lies
// in buffer l % 2, at b * layer_bytes.
//
// padded_tokens not 0: attention is computed over so many positions in every row, what lies beyond
// the row's context being masked, as a graph of that fixed length would.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "step/ids.h"

namespace kvrm {

// Consecutive blocks of the pool.
struct Extent {
  BlockId start{};
  std::uint32_t num_blocks = 0;
  friend bool operator==(const Extent&, const Extent&) = default;
};

enum class GroupKind : std::uint8_t {
  // Blocks, `num_blocks` of them, pool and window blocks alike: whole, one contiguous copy; or with
  // `num_layers` some layers of each, one 2-D copy.
  kBlocks,
  // For every layer l: slice l of each source block to the layer buffer l % 2 at block `target`,
  // one 2-D copy. When layer l attends, the buffer holds the slice as the step has left it: either
  // it is gathered after the step has written layer l's slots, or the tokens are written to both.
  kLayerSlices,
  // No copy: window blocks `target` show pool blocks `source` from this step on.
  kMap,
};

// One edit of what a step sees: a large copy or a mapping. Sources may overlap one another.
struct TransferGroup {
  BlockId source{};
  BlockId target{};
  std::uint32_t num_blocks = 0;
  GroupKind kind = GroupKind::kBlocks;
  std::uint8_t source_tier = 0;  // 0: the executor's memory.
  std::uint8_t target_tier = 0;
  std::uint8_t priority = 0;  // why it moves: MovePriority, the most urgent of what was merged
  // The deadline: it lands before layer `before_layer` stores or attends. 0: before the step runs.
  std::uint16_t before_layer = 0;
  // 0: the blocks are copied whole, and before_layer is 0. Else layers [before_layer, + num_layers)
  // of them are, and the step's other groups copy their other layers (D8).
  std::uint16_t num_layers = 0;
  friend bool operator==(const TransferGroup&, const TransferGroup&) = default;
};
static_assert(sizeof(TransferGroup) == 20);

inline constexpr std::uint32_t kAllDeadlines = ~std::uint32_t{0};  // before_layer of all groups

// Sizes every array of the descriptor. Constant after start.
struct StepLimits {
  std::uint32_t max_rows = 0;     // B
  std::uint32_t max_tokens = 0;   // Over all rows; at least max_rows.
  std::uint32_t max_runs = 0;     // R, runs per row.
  std::uint32_t max_groups = 0;   // G
  std::uint32_t max_samples = 0;  // Tokens whose logits are wanted, over all rows.
  std::uint32_t block_tokens = 0;
  bool mirrored = false;  // Makes room for `mirrors`.
};

inline constexpr std::uint32_t kStepVersion = 3;

// StepHeader::flags
inline constexpr std::uint32_t kStepMirrored = 1;      // `mirrors` is there
inline constexpr std::uint32_t kStepLayerWindows = 2;  // runs name blocks of the layer buffers

struct StepHeader {
  std::uint32_t version;      // kStepVersion
  std::uint32_t bucket;       // Index of the graph that runs this step.
  StepId step;                // Commit epoch.
  std::uint32_t num_rows;     // Live rows.
  std::uint32_t bucket_rows;  // Rows including padding.
  std::uint32_t num_tokens;   // Tokens computed by this step, over all live rows.
  std::uint32_t num_samples;  // Tokens whose logits are wanted.
  std::uint32_t num_groups;
  std::uint32_t padded_tokens;  // 0: rows attend what they have.
  std::uint32_t flags;          // kStep...
  std::uint32_t reserved;       // Zero.
  std::uint64_t checksum;       // Over the header with this field zero and every used element.
};
static_assert(std::is_trivially_copyable_v<StepHeader>);
static_assert(sizeof(StepHeader) == 56, "executors read this at fixed offsets");

struct StepView {
  const StepHeader* header = nullptr;
  std::span<const std::int32_t> token_ids;      // [num_tokens]
  std::span<const std::int32_t> positions;      // [num_tokens]
  std::span<const SlotId> slots;                // [num_tokens] where this token's K and V go
  std::span<const SlotId> mirrors;              // [num_tokens], empty without kStepMirrored
  std::span<const std::uint32_t> row_start;     // [num_rows + 1], prefix sums into token_ids
  std::span<const SeqId> row_seq;               // [num_rows]
  std::span<const std::uint32_t> num_runs;      // [bucket_rows]
  std::span<const Extent> runs;                 // [bucket_rows * max_runs], row-major
  std::span<const std::uint32_t> sample_token;  // [num_samples] index into token_ids
  std::span<const TransferGroup> groups;        // [num_groups] copies in order of before_layer
  std::uint32_t max_runs = 0;

  // Of the copies: the last one's. 0: the step runs when they have landed.
  std::uint32_t LastDeadline() const {
    std::uint32_t last = 0;
    for (const TransferGroup& group : groups)
      last = group.kind == GroupKind::kBlocks ? group.before_layer : last;
    return last;
  }
  std::span<const Extent> RowRuns(std::uint32_t row) const {
    return runs.subspan(std::size_t{row} * max_runs, num_runs[row]);
  }
};

}  // namespace kvrm
