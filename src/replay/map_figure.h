// SPDX-License-Identifier: Apache-2.0
// MapFigure: the KV maps of a record as one picture, of which a report is made. Time goes to the
// right, blocks go up; a colour is a sequence, grey the prefix cache, what is free is empty.
//
// Threading: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "replay/record.h"

namespace kvrm {

inline constexpr std::size_t kMapColumns = 200;  // most moments shown
inline constexpr std::uint32_t kMapRows = 192;   // most units of blocks shown
inline constexpr std::size_t kNumMapColors = 10;

// Blocks [first, end) of one owner from one moment shown to another.
struct MapRect {
  std::size_t begin = 0;  // columns
  std::size_t end = 0;
  BlockMapRun blocks;
  std::size_t color = 0;  // below kNumMapColors; kNumMapColors: the cache
  friend bool operator==(const MapRect&, const MapRect&) = default;
};

// At most kMapColumns of the maps, evenly spread, each no finer than kMapRows units.
std::vector<MapRecord> ShownMaps(std::span<const MapRecord> maps);
// In order of their begins. What stays from one column to the next is one rectangle; a sequence
// keeps its colour, which is one that its neighbours do not have when it comes, if there is one.
std::vector<MapRect> MapRects(std::span<const MapRecord> shown);
// A <figure>; "" of a record without maps. Colours are the page's: --k0 .. --k9 and --kc.
std::string MapFigure(const Record& record, const std::string& name);

}  // namespace kvrm
