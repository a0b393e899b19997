// SPDX-License-Identifier: Apache-2.0
// Attention of one new token a row over its history, as the executor calls it: (row, kv head) items
// divided among the workers, one run of blocks a row.
//
// The cache has as many layers as make it twice the last-level cache, taken in turn.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "bench/bench.h"
#include "bench/peak.h"
#include "exec/worker_team.h"

namespace kvrm {

struct HeadShape {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
};
inline constexpr std::uint32_t kMaxBenchContext = 1u << 20;

// "32/8x64,16/8x128": heads / kv heads x head dimension. Throws StartError that names the flag and
// the limits.
std::vector<HeadShape> ParseHeads(std::string_view flag, std::string_view text);
// A type the KV cache can have. Throws StartError.
DType ParseKvType(std::string_view flag, std::string_view text);
// Throws StartError where heads of `head_dim` have no whole blocks of the type.
void CheckKvHeadDim(DType type, std::uint32_t head_dim);

struct AttentionBench {
  std::vector<DType> types;
  std::vector<HeadShape> heads;
  std::vector<std::uint32_t> rows;
  std::vector<std::uint32_t> contexts;  // tokens, the own one included
  std::uint64_t kv_bytes = 0;           // of all layers; 0: twice the last-level cache
};

// A line for every type, shape, number of rows and context. Throws StartError.
void RunAttentionBench(const AttentionBench& bench, const BenchOptions& options, const Peaks& peaks,
                       WorkerTeam& team, const BenchSink& sink);

}  // namespace kvrm
