// SPDX-License-Identifier: Apache-2.0
#include "replay/map_figure.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "replay/text.h"
#include "replay/ticks.h"

namespace kvrm {
namespace {

// As the charts beside it.
constexpr double kWidth = 640;
constexpr double kHeight = 330;
constexpr double kLeft = 58;
constexpr double kRight = 12;
constexpr double kTop = 12;
constexpr double kBottom = 46;

// Colours of owners, by the first column that shows them.
class Colors {
 public:
  // Of run `i` of a map.
  std::size_t Of(const MapRecord& map, std::size_t i) {
    const std::uint64_t owner = map.runs[i].owner;
    if (owner == kCacheOwner) return kNumMapColors;
    const auto known = known_.find(owner);
    if (known != known_.end()) return known->second;
    std::array<bool, kNumMapColors> taken = {};
    const auto take = [&](std::size_t j) {
      const auto neighbour = known_.find(map.runs[j].owner);
      if (neighbour != known_.end()) taken[neighbour->second] = true;
    };
    // Wherever it has blocks.
    for (std::size_t j = 0; j < map.runs.size(); ++j) {
      if (map.runs[j].owner != owner) continue;
      if (j > 0) take(j - 1);
      if (j + 1 < map.runs.size()) take(j + 1);
    }
    const std::size_t first = owner % kNumMapColors;
    std::size_t color = first;
    for (std::size_t k = 0; k < kNumMapColors && taken[color]; ++k)
      color = (first + k) % kNumMapColors;
    known_.emplace(owner, color);
    return color;
  }

 private:
  std::unordered_map<std::uint64_t, std::size_t> known_;
};

class Plot {
 public:
  Plot(std::span<const MapRecord> shown, std::int64_t end_ns) : num_blocks_(shown[0].num_blocks) {
    for (const MapRecord& map : shown)
      times_.push_back(static_cast<double>(map.at_ns) * 1e-9);
    // The last one lasts to the end of the replay. Ticks need a span that doubles can tell apart.
    const double least = times_[0] + std::max(1e-3, times_[0] * 1e-6);
    times_.push_back(std::max({times_.back(), static_cast<double>(end_ns) * 1e-9, least}));
  }

  double X(std::size_t column) const { return XOf(times_[column]); }
  double XOf(double s) const {
    return kLeft +
           (s - times_.front()) / (times_.back() - times_.front()) * (kWidth - kLeft - kRight);
  }
  double Y(std::uint32_t block) const {
    return kHeight - kBottom -
           static_cast<double>(block) / num_blocks_ * (kHeight - kTop - kBottom);
  }

  std::string Axes() const {
    std::string svg = "<g class=\"axes\">";
    for (const double block : EvenTicks(0.0, num_blocks_, 5)) {
      const double y = Y(static_cast<std::uint32_t>(block));
      svg += Format("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                    kWidth - kRight, y, y);
      svg += Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>", kLeft - 6, y + 4,
                    TickLabel(block).c_str());
    }
    for (const double s : EvenTicks(times_.front(), times_.back(), 6))
      svg += Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", XOf(s),
                    kHeight - kBottom + 18, TickLabel(s).c_str());
    return svg + Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">s</text></g>",
                        kWidth - kRight, kHeight - 6);
  }

 private:
  const double num_blocks_;
  std::vector<double> times_;  // of the columns, and where the last one ends
};

}  // namespace

std::vector<MapRecord> ShownMaps(std::span<const MapRecord> maps) {
  const std::size_t stride = (maps.size() + kMapColumns - 1) / kMapColumns;
  std::vector<MapRecord> shown;
  for (std::size_t i = 0; i < maps.size(); i += stride) {
    const std::uint32_t unit = maps[i].num_blocks / kMapRows + 1;
    shown.push_back(Coarser(maps[i], unit));
  }
  return shown;
}

std::vector<MapRect> MapRects(std::span<const MapRecord> shown) {
  std::vector<MapRect> rects;
  std::vector<std::size_t> open;  // rects of the column before, ascending by block
  Colors colors;
  for (std::size_t column = 0; column < shown.size(); ++column) {
    std::vector<std::size_t> now;
    std::size_t before = 0;
    for (std::size_t i = 0; i < shown[column].runs.size(); ++i) {
      const BlockMapRun& run = shown[column].runs[i];
      while (before < open.size() && rects[open[before]].blocks.start < run.start)
        ++before;
      if (before < open.size() && rects[open[before]].blocks == run) {
        now.push_back(open[before]);
      } else {
        now.push_back(rects.size());
        rects.push_back({column, column, run, colors.Of(shown[column], i)});
      }
      rects[now.back()].end = column + 1;
    }
    open = std::move(now);
  }
  return rects;
}

std::string MapFigure(const Record& record, const std::string& name) {
  if (record.maps.empty() || record.maps[0].num_blocks == 0) return "";
  const std::vector<MapRecord> shown = ShownMaps(record.maps);
  const Plot plot(shown, record.end_ns);
  std::array<std::string, kNumMapColors + 1> paths;
  for (const MapRect& rect : MapRects(shown)) {
    const double x = plot.X(rect.begin);
    const double y = plot.Y(rect.blocks.start + rect.blocks.num_blocks);
    const double height = plot.Y(rect.blocks.start) - y;
    const double width = plot.X(rect.end) - x;
    paths[rect.color] += Format("M%.1f %.1fh%.1fv%.1fh%.1fz", x, y, width, height, -width);
  }
  const std::string title = EscapedHtml(name) + ": who has which blocks";
  std::string svg =
      "<figure class=\"wide\"><h3>" + title + " <small>(block, over time)</small></h3>" +
      Format("<svg viewBox=\"0 0 %.0f %.0f\"", kWidth, kHeight) + " role=\"img\" aria-label=\"" +
      title + "\">" + plot.Axes() + "<g shape-rendering=\"crispEdges\">";
  for (std::size_t c = 0; c < paths.size(); ++c) {
    if (paths[c].empty()) continue;
    const std::string color = c == kNumMapColors ? "kc" : Format("k%zu", c);
    svg += "<path fill=\"var(--" + color + ")\" d=\"" + paths[c] + "\"/>";
  }
  return svg + "</g></svg></figure>\n";
}

}  // namespace kvrm
