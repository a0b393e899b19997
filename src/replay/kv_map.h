// SPDX-License-Identifier: Apache-2.0
// KV maps: who had which blocks of the pool, at moments spread over a replay whose length nobody
// knows while it runs.
//
// Whenever kMostMaps are there every second one goes and the interval doubles: so between half as
// many and all of them are kept, evenly spread, and a replay of any length costs the same. A map of
// more than kMostMapRuns runs is made coarser until it has no more. A record has at most 10 MB of
// maps.
//
// Threading: one thread, never the step path. Memory: the maps that are kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_map.h"

namespace kvrm {

struct MapRecord {
  std::int64_t at_ns = 0;        // since the replay began
  std::uint32_t num_blocks = 0;  // of the pool, sentinel included: blocks are 1 .. num_blocks - 1
  std::vector<BlockMapRun> runs = {};  // ascending and disjoint; free blocks are in none
};

inline constexpr std::size_t kMostMaps = 480;
inline constexpr std::size_t kMostMapRuns = 1024;

class MapSampler {
 public:
  // Whether a map of this moment is wanted; moments do not descend.
  bool IsDue(std::int64_t at_ns) const { return at_ns >= next_ns_; }
  // Requires: IsDue(map.at_ns).
  void Add(MapRecord map);
  std::span<const MapRecord> maps() const { return maps_; }

 private:
  std::vector<MapRecord> maps_;
  std::int64_t interval_ns_ = 1'000'000;
  std::int64_t next_ns_ = 0;
};

// In units of `unit` blocks, from block 0 on: each unit is whose it is most, of equals who comes
// first, and what is free counts for nobody. Requires: unit > 0.
MapRecord Coarser(const MapRecord& map, std::uint32_t unit);

}  // namespace kvrm
