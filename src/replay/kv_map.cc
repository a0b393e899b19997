// SPDX-License-Identifier: Apache-2.0
#include "replay/kv_map.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace kvrm {

void MapSampler::Add(MapRecord map) {
  CHECK(IsDue(map.at_ns));
  for (std::uint32_t unit = 2; map.runs.size() > kMostMapRuns; unit *= 2)
    map = Coarser(map, unit);
  next_ns_ = map.at_ns + interval_ns_;
  maps_.push_back(std::move(map));
  if (maps_.size() < kMostMaps) return;
  for (std::size_t i = 1; 2 * i < maps_.size(); ++i)
    maps_[i] = std::move(maps_[2 * i]);
  maps_.resize((maps_.size() + 1) / 2);
  interval_ns_ *= 2;
  next_ns_ = maps_.back().at_ns + interval_ns_;
}

MapRecord Coarser(const MapRecord& map, std::uint32_t unit) {
  CHECK(unit > 0);
  MapRecord coarse = {.at_ns = map.at_ns, .num_blocks = map.num_blocks};
  std::vector<std::pair<std::uint64_t, std::uint32_t>> shares;  // owner, blocks; of one unit
  const auto finish = [&](std::uint32_t begin) {
    if (shares.empty()) return;
    const auto more = [](const auto& a, const auto& b) { return a.second < b.second; };
    const std::uint64_t owner = std::ranges::max_element(shares, more)->first;
    const std::uint32_t count = std::min(unit, map.num_blocks - begin);
    std::vector<BlockMapRun>& runs = coarse.runs;
    if (!runs.empty() && runs.back().owner == owner &&
        runs.back().start + runs.back().num_blocks == begin) {
      runs.back().num_blocks += count;
    } else {
      runs.push_back({begin, count, owner});
    }
    shares.clear();
  };
  std::uint32_t begin = 0;  // of the unit that shares are of
  for (const BlockMapRun& run : map.runs) {
    for (std::uint32_t at = run.start; at < run.start + run.num_blocks;) {
      if (at - at % unit != begin) finish(begin);
      begin = at - at % unit;
      const std::uint32_t count = std::min(run.start + run.num_blocks, begin + unit) - at;
      const auto known =
          std::ranges::find(shares, run.owner, [](const auto& s) { return s.first; });
      if (known == shares.end())
        shares.emplace_back(run.owner, count);
      else
        known->second += count;
      at += count;
    }
  }
  finish(begin);
  return coarse;
}

}  // namespace kvrm
