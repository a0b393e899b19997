// SPDX-License-Identifier: Apache-2.0
#include "replay/kv_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/host_device.h"
#include "engine/random_request.h"
#include "replay/device_profile.h"
#include "replay/map_figure.h"
#include "replay/record.h"
#include "replay/report.h"
#include "replay/small_engine_for_test.h"

namespace kvrm {
namespace {

constexpr std::int64_t kMs = 1'000'000;

TEST(MapSampler, KeepsAnEvenSpreadOfAnyLength) {
  for (const std::int64_t length : {10, 479, 480, 5'000, 1'000'000}) {
    MapSampler sampler;
    for (std::int64_t i = 0; i < length; ++i) {
      if (sampler.IsDue(i * kMs)) sampler.Add({.at_ns = i * kMs, .num_blocks = 8});
    }
    const std::span<const MapRecord> maps = sampler.maps();
    ASSERT_LT(maps.size(), kMostMaps) << length;
    EXPECT_EQ(maps.front().at_ns, 0);
    if (length < 480) {
      EXPECT_EQ(maps.size(), static_cast<std::size_t>(length));
    } else {
      EXPECT_GE(maps.size(), kMostMaps / 2) << length;
    }
    const std::int64_t step_ns = maps[1].at_ns;
    for (std::size_t i = 1; i < maps.size(); ++i)
      ASSERT_EQ(maps[i].at_ns - maps[i - 1].at_ns, step_ns) << length;
    EXPECT_GT(maps.back().at_ns + step_ns, (length - 1) * kMs) << length;
  }
}

TEST(MapSampler, AMapOfManyRunsIsMadeCoarser) {
  MapRecord map = {.num_blocks = 40'001};
  for (std::uint32_t b = 1; b < map.num_blocks; b += 2)
    map.runs.push_back({b, 1, b});
  MapSampler sampler;
  sampler.Add(map);
  const std::vector<BlockMapRun>& runs = sampler.maps()[0].runs;
  EXPECT_LE(runs.size(), kMostMapRuns);
  EXPECT_GT(runs.size(), kMostMapRuns / 4);
  EXPECT_LE(runs.back().start + runs.back().num_blocks, map.num_blocks);
}

TEST(KvMap, AUnitIsWhoseItIsMost) {
  const MapRecord map = {
      .at_ns = 5, .num_blocks = 19, .runs = {{1, 3, 7}, {4, 1, 8}, {5, 2, 7}, {9, 9, 8}}};
  const MapRecord coarse = Coarser(map, 4);
  EXPECT_EQ(coarse.at_ns, 5);
  EXPECT_EQ(coarse.num_blocks, 19u);
  // Blocks 0 to 7 are 7's, although 8 has one of them; the last unit is cut to the pool.
  EXPECT_EQ(coarse.runs, (std::vector<BlockMapRun>{{0, 8, 7}, {8, 11, 8}}));
  EXPECT_EQ(Coarser(map, 1).runs, map.runs);
}

// Of two maps, as a record has them.
std::string TwoMaps() {
  return RecordLine(RecordHeader{.target = "sim", .clock = "virtual"}) +
         RecordLine(MapRecord{1 * kMs, 9, {{1, 2, 4}, {3, 5, kCacheOwner}}}) +
         RecordLine(MapRecord{3 * kMs, 9, {{1, 2, 4}, {4, 5, 6}}}) +
         "{\"end\":6000000,\"requests\":0,\"steps\":0}\n";
}

TEST(MapRecord, WhatIsWrittenIsRead) {
  const Result<Record> record = ParseRecord(TwoMaps());
  ASSERT_TRUE(record) << record.error().message;
  ASSERT_EQ(record->maps.size(), 2u);
  EXPECT_EQ(record->maps[1].at_ns, 3 * kMs);
  EXPECT_EQ(record->maps[1].num_blocks, 9u);
  EXPECT_EQ(record->maps[1].runs, (std::vector<BlockMapRun>{{1, 2, 4}, {4, 5, 6}}));
  EXPECT_NE(RecordLine(record->maps[0]).find("[1,2,4,3,5,0]"), std::string::npos);
}

TEST(MapRecord, NamesWhatIsWrong) {
  const auto error = [](const std::string& lines) {
    const Result<Record> record =
        ParseRecord(RecordLine(RecordHeader{.target = "sim", .clock = "virtual"}) + lines + "\n");
    return record ? "none" : record.error().message;
  };
  EXPECT_EQ(error(R"({"map":1,"blocks":9,"runs":[]})"), "none");
  EXPECT_EQ(error(R"({"map":1,"runs":[]})"), "line 2: blocks is missing");
  EXPECT_EQ(error(R"({"map":1,"blocks":9,"runs":[1,2]})"),
            "line 2: runs are no starts, lengths and owners");
  for (const char* runs : {"[1,0,4]", "[9,1,4]", "[8,2,4]", "[1,3,4,3,1,5]", "[3,1,4,1,1,5]",
                           "[1,4611686018427387904,1]"}) {
    EXPECT_EQ(error(R"({"map":1,"blocks":9,"runs":)" + std::string(runs) + "}"),
              "line 2: runs are not in order, or beyond the blocks")
        << runs;
  }
  const std::string first = "{\"map\":5,\"blocks\":9,\"runs\":[]}\n";
  EXPECT_EQ(error(first + R"({"map":4,"blocks":9,"runs":[]})"),
            "line 3: map is before the last one");
  EXPECT_EQ(error(first + R"({"map":5,"blocks":8,"runs":[]})"),
            "line 3: blocks are not as many as before");
  std::string many;
  for (std::size_t i = 0; i < kMostMaps; ++i)
    many += first;
  EXPECT_EQ(error(many + first), "line 482: map is one too many");
}

TEST(MapFigure, WhatStaysIsOneRectangleOfOneColour) {
  std::vector<MapRecord> maps = {{0, 9, {{1, 2, 4}, {3, 5, kCacheOwner}}},
                                 {1, 9, {{1, 2, 4}, {4, 5, 6}}},
                                 {2, 9, {{1, 3, 4}, {4, 5, 6}}}};
  const std::vector<MapRect> rects = MapRects(maps);
  ASSERT_EQ(rects.size(), 4u);
  EXPECT_EQ(rects[0].begin, 0u);
  EXPECT_EQ(rects[0].end, 2u);
  EXPECT_EQ(rects[1].color, kNumMapColors);
  EXPECT_EQ(rects[2], (MapRect{1, 3, {4, 5, 6}, rects[2].color}));
  EXPECT_EQ(rects[3], (MapRect{2, 3, {1, 3, 4}, rects[0].color}));
}

TEST(MapFigure, NeighboursDiffer) {
  // Ids of one colour by themselves, all at once and then between others.
  MapRecord map = {0, 100, {}};
  for (std::uint32_t i = 0; i < 30; ++i)
    map.runs.push_back({1 + i, 1, (i + 1) * kNumMapColors});
  const std::vector<MapRecord> maps = {map};
  const std::vector<MapRect> rects = MapRects(maps);
  for (std::size_t i = 1; i < rects.size(); ++i)
    EXPECT_NE(rects[i].color, rects[i - 1].color) << i;
}

TEST(MapFigure, ShowsOfManyMapsAndBlocksWhatAPictureHolds) {
  std::vector<MapRecord> maps;
  for (std::int64_t i = 0; i < 480; ++i) {
    maps.push_back({i * kMs, 100'000, {}});
    for (std::uint32_t b = 1; b < 100'000; b += 100)
      maps.back().runs.push_back({b, 50, b});
  }
  const std::vector<MapRecord> shown = ShownMaps(maps);
  EXPECT_LE(shown.size(), kMapColumns);
  EXPECT_GT(shown.size(), kMapColumns / 2);
  for (const MapRecord& map : shown)
    ASSERT_LE(map.runs.size(), kMapRows);
}

std::string PageOf(const std::string& text) {
  const Result<Record> record = ParseRecord(text);
  EXPECT_TRUE(record);
  const ReportedRecord reported = {"a<b", &*record, Measure(*record, {})};
  return ReportHtml({&reported, 1});
}

TEST(MapFigure, IsOnThePageOfARecordThatHasMaps) {
  const std::string page = PageOf(TwoMaps());
  EXPECT_NE(page.find("KV map over time"), std::string::npos);
  EXPECT_NE(page.find("a&lt;b: who has which blocks"), std::string::npos);
  EXPECT_NE(page.find("fill=\"var(--kc)\""), std::string::npos);
  const std::string without = RecordLine(RecordHeader{.target = "sim", .clock = "virtual"}) +
                              "{\"end\":6,\"requests\":0,\"steps\":0}\n";
  EXPECT_EQ(PageOf(without).find("KV map"), std::string::npos);
  // One moment, as late as a record may have it: still a picture, of finite numbers.
  const std::string late = RecordLine(RecordHeader{.target = "sim", .clock = "virtual"}) +
                           RecordLine(MapRecord{std::int64_t{1} << 62, 9, {{1, 2, 4}}});
  const std::string page_late = PageOf(late);
  EXPECT_NE(page_late.find("KV map over time"), std::string::npos);
  EXPECT_EQ(page_late.find("nan"), std::string::npos);
  EXPECT_EQ(page_late.find("inf"), std::string::npos);
}

// What the map says is held and cached is what the cache's books say.
TEST(BlockMap, CountsEveryBlockOnce) {
  SimClock clock;
  HostDevice device;
  StepProbe probe;
  Engine engine(ProfileParts({}, device, &probe, &clock), SmallEngine(), clock);
  Rng rng(11, "map");
  TokenEvent events[64];
  std::uint64_t most_cached = 0;
  std::size_t most_runs = 0;
  for (int step = 0; step < 600; ++step) {
    if (step % 20 == 0) {
      const auto prompt = static_cast<std::uint32_t>(20 + rng.Below(300u));
      ASSERT_TRUE(engine.Submit(RandomRequest(rng, kProfileVocab, prompt, 60)));
    }
    engine.Step();
    while (engine.Poll(events) > 0) {
    }
    std::uint64_t held = 0;
    std::uint64_t cached = 0;
    std::uint32_t end = 1;
    const std::vector<BlockMapRun> runs = engine.BlockMap();
    for (const BlockMapRun& run : runs) {
      ASSERT_GE(run.start, end);
      end = run.start + run.num_blocks;
      (run.owner == kCacheOwner ? cached : held) += run.num_blocks;
    }
    const KvStats kv = engine.kv_stats();
    ASSERT_LE(end, kv.num_blocks + 1);
    ASSERT_EQ(held, kv.num_held) << step;
    ASSERT_EQ(cached, kv.num_cached) << step;
    most_cached = std::max(most_cached, cached);
    most_runs = std::max(most_runs, runs.size());
  }
  EXPECT_GT(most_cached, 20u);
  EXPECT_GT(most_runs, 4u);
}

}  // namespace
}  // namespace kvrm
