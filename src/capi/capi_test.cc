// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "capi/kvrm.h"
#include "capi/random_calls_for_test.h"

extern "C" int kvrm_c99_program(char* why, std::size_t why_bytes);

namespace {

constexpr std::uint32_t kBlockTokens = 16;
constexpr std::array<std::int32_t, 64> kTokens = {};

kvrm_options Options() {
  kvrm_options options;
  kvrm_options_init(&options, sizeof(options));
  options.layer_token_bytes = 8;
  options.num_blocks = 9;
  options.max_seqs = 3;
  options.max_blocks_per_seq = 4;
  options.max_rows = 2;
  options.max_tokens = 64;
  options.max_samples = 2;
  options.prefix_cache = 1;
  return options;
}

// A cache with the calls of a step in one.
struct Bench {
  explicit Bench(const kvrm_options& options) {
    std::array<char, 128> why = {};
    EXPECT_EQ(kvrm_create(&options, &cache, why.data(), why.size()), KVRM_OK) << why.data();
  }
  ~Bench() { kvrm_destroy(cache); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  std::string message() const { return kvrm_message(cache); }
  void Plan() {
    ASSERT_EQ(kvrm_step_begin(cache), KVRM_OK);
    ASSERT_EQ(kvrm_step_plan(cache), KVRM_OK);
  }
  void Run() {
    ASSERT_EQ(kvrm_step_commit(cache, 0, 2), KVRM_OK) << message();
    kvrm_step step = {};
    step.struct_size = sizeof(step);
    ASSERT_EQ(kvrm_step_latch(cache, &step), KVRM_OK);
    ASSERT_EQ(kvrm_step_land(cache), KVRM_OK);
    ASSERT_EQ(kvrm_step_retire(cache, nullptr), KVRM_OK) << message();
  }
  void Write(std::uint32_t seq, std::uint32_t num_tokens) {
    ASSERT_EQ(kvrm_extend(cache, seq, kvrm_length(cache, seq) + num_tokens), KVRM_OK);
    Plan();
    ASSERT_EQ(kvrm_step_add_row(cache, seq, kTokens.data(), num_tokens, 1), KVRM_OK);
    Run();
  }
  kvrm_stats stats() const {
    kvrm_stats stats = {};
    stats.struct_size = sizeof(stats);
    EXPECT_EQ(kvrm_get_stats(cache, &stats), KVRM_OK);
    return stats;
  }

  kvrm_cache* cache = nullptr;
};

TEST(CApi, ProgramInC99) {
  std::array<char, 192> why = {};
  EXPECT_EQ(kvrm_c99_program(why.data(), why.size()), 0) << why.data();
}

TEST(CApi, OptionsOutOfRangeAreNamed) {
  const auto refused = [](const char* field, auto set) {
    kvrm_options options = Options();
    set(options);
    kvrm_cache* cache = nullptr;
    std::array<char, 128> why = {};
    EXPECT_EQ(kvrm_create(&options, &cache, why.data(), why.size()), KVRM_ARGUMENT) << field;
    EXPECT_EQ(cache, nullptr);
    EXPECT_EQ(std::string(why.data()).rfind(field, 0), 0u) << why.data();
  };
  refused("layer_token_bytes", [](kvrm_options& o) { o.layer_token_bytes = 0; });
  refused("layer_token_bytes", [](kvrm_options& o) { o.layer_token_bytes = 6; });
  refused("num_layers", [](kvrm_options& o) { o.num_layers = 0; });
  refused("block_tokens", [](kvrm_options& o) { o.block_tokens = 24; });
  refused("block_tokens", [](kvrm_options& o) { o.block_tokens = 2048; });
  refused("num_blocks", [](kvrm_options& o) { o.num_blocks = 1; });
  refused("max_seqs", [](kvrm_options& o) { o.max_seqs = 0; });
  refused("max_seqs", [](kvrm_options& o) { o.max_seqs = 1u << 20, o.max_blocks_per_seq = 1000; });
  refused("max_blocks_per_seq", [](kvrm_options& o) { o.max_blocks_per_seq = 0; });
  refused("max_blocks_per_seq",
          [](kvrm_options& o) { o.block_tokens = 1024, o.max_blocks_per_seq = 1u << 24; });
  refused("max_tokens", [](kvrm_options& o) { o.max_tokens = 1; });
  refused("max_samples", [](kvrm_options& o) { o.max_samples = 65; });
  refused("max_runs", [](kvrm_options& o) { o.max_runs = 1; });
  refused("max_groups", [](kvrm_options& o) { o.max_groups = 0; });
  refused("ring_entries", [](kvrm_options& o) { o.ring_entries = 9; });
  refused("max_move_bytes_per_step", [](kvrm_options& o) { o.max_move_bytes_per_step = 127; });
  refused("view", [](kvrm_options& o) { o.view = "windows"; });
  refused("view", [](kvrm_options& o) { o.view = nullptr; });
  refused("placement", [](kvrm_options& o) { o.placement = ""; });
  refused("max_parked", [](kvrm_options& o) { o.max_parked = ~0u; });
  refused("options", [](kvrm_options& o) { o.struct_size = 16; });
  kvrm_device device = {};
  refused("device: struct_size", [&](kvrm_options& o) { o.device = &device; });
  device.struct_size = sizeof(device);
  refused("device: reserve", [&](kvrm_options& o) { o.device = &device; });
}

TEST(CApi, StaticPoolThatIsTooSmallNamesTheNumber) {
  kvrm_options options = Options();
  options.view = "static";
  kvrm_cache* cache = nullptr;
  std::array<char, 192> why = {};
  EXPECT_EQ(kvrm_create(&options, &cache, why.data(), why.size()), KVRM_START);
  EXPECT_NE(std::string(why.data()).find("needs 13 blocks"), std::string::npos) << why.data();
  EXPECT_EQ(kvrm_create(nullptr, &cache, nullptr, 0), KVRM_ARGUMENT);
}

TEST(CApi, SequencesAreCheckedBeforeAnythingChanges) {
  Bench bench(Options());
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(kvrm_open(cache, 3, 0), KVRM_ARGUMENT);
  EXPECT_EQ(bench.message(), "seq is 3; max_seqs is 3");
  EXPECT_EQ(kvrm_open(cache, 0, 65), KVRM_ARGUMENT);
  EXPECT_EQ(bench.message(), "reserve_tokens is 65; at most 64 here");
  EXPECT_EQ(kvrm_extend(cache, 0, 1), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_release(cache, 7), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_open(cache, 0, 64), KVRM_OK);
  EXPECT_EQ(bench.message(), "");
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OPEN);
  EXPECT_EQ(kvrm_open(cache, 1, 64), KVRM_OK);
  EXPECT_EQ(kvrm_open(cache, 2, 1), KVRM_FULL);
  EXPECT_EQ(kvrm_available_tokens(cache), 0u);
  EXPECT_EQ(kvrm_reserve(cache, 2, 1), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_extend(cache, 0, 65), KVRM_ARGUMENT);
  bench.Write(0, 20);
  EXPECT_EQ(kvrm_length(cache, 0), 20u);
  EXPECT_EQ(kvrm_truncate(cache, 0, 21), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_trim(cache, 0, 0, 21), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_trim(cache, 0, 17, 16), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_fork(cache, 2, 0, 21, 0), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_fork(cache, 0, 0, 16, 0), KVRM_OPEN);
  EXPECT_EQ(kvrm_extend(cache, 0, 30), KVRM_OK);
  EXPECT_EQ(kvrm_fork(cache, 2, 0, 20, 0), KVRM_ORDER);
  EXPECT_EQ(kvrm_publish(cache, 0, nullptr), KVRM_ARGUMENT);
  const kvrm_prefix no_keys = {kTokens.data(), 16, nullptr, 1};
  EXPECT_EQ(kvrm_open_cached(cache, 2, &no_keys, 0, nullptr), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_open(nullptr, 0, 0), KVRM_ARGUMENT);
  EXPECT_EQ(bench.stats().num_open, 2u);
}

TEST(CApi, StaticViewsShareNothing) {
  kvrm_options options = Options();
  options.view = "static";
  options.num_blocks = 13;
  Bench bench(options);
  EXPECT_EQ(kvrm_open(bench.cache, 0, 64), KVRM_OK);
  bench.Write(0, 16);
  EXPECT_EQ(kvrm_fork(bench.cache, 1, 0, 16, 0), KVRM_UNSUPPORTED);
}

TEST(CApi, StepsHaveOneOrder) {
  Bench bench(Options());
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(kvrm_step_plan(cache), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_commit(cache, 0, 2), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_abandon(cache), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_retire(cache, nullptr), KVRM_ORDER);
  kvrm_step step = {};
  EXPECT_EQ(kvrm_step_latch(cache, &step), KVRM_ARGUMENT);
  step.struct_size = sizeof(step);
  EXPECT_EQ(kvrm_step_latch(cache, &step), KVRM_WAIT);
  EXPECT_EQ(kvrm_open(cache, 0, 64), KVRM_OK);
  EXPECT_EQ(kvrm_extend(cache, 0, 20), KVRM_OK);
  EXPECT_EQ(kvrm_step_begin(cache), KVRM_OK);
  EXPECT_EQ(kvrm_step_begin(cache), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 4, 1), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_plan(cache), KVRM_OK);
  EXPECT_EQ(kvrm_step_plan(cache), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_add_row(cache, 1, kTokens.data(), 4, 1), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, nullptr, 4, 1), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 21, 1), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 4, 3), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 4, 1), KVRM_OK);
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 4, 1), KVRM_ORDER);
  EXPECT_EQ(kvrm_truncate(cache, 0, 0), KVRM_ORDER);
  EXPECT_EQ(kvrm_trim(cache, 0, 0, 0), KVRM_ORDER);
  EXPECT_EQ(kvrm_fork(cache, 1, 0, 0, 0), KVRM_ORDER);
  EXPECT_EQ(kvrm_step_commit(cache, 0, 0), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_step_commit(cache, 0, 3), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_step_commit(cache, 5, 2), KVRM_OK);
  EXPECT_EQ(kvrm_length(cache, 0), 4u);
  EXPECT_EQ(kvrm_step_latch(cache, &step), KVRM_OK);
  EXPECT_EQ(step.bucket, 5u);
  EXPECT_EQ(step.num_rows, 1u);
  EXPECT_EQ(step.bucket_rows, 2u);
  EXPECT_EQ(step.runs[0].start, 9u);              // The window of lane 0.
  EXPECT_EQ(step.runs[step.max_runs].start, 0u);  // Padding.
  EXPECT_EQ(step.mirrors[0], 9u * kBlockTokens);
  EXPECT_EQ(kvrm_step_retire(cache, nullptr), KVRM_ORDER);  // Not landed.
  EXPECT_EQ(kvrm_step_land(cache), KVRM_OK);
  std::uint64_t epoch = 0;
  EXPECT_EQ(kvrm_step_retire(cache, &epoch), KVRM_OK);
  EXPECT_EQ(epoch, 1u);
}

TEST(CApi, FullRingWaitsAndAbandonedStepsLeaveNothing) {
  Bench bench(Options());
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(kvrm_open(cache, 0, 64), KVRM_OK);
  for (int i = 0; i < 2; ++i) {
    bench.Plan();
    EXPECT_EQ(kvrm_step_commit(cache, 0, 2), KVRM_OK);
  }
  EXPECT_EQ(kvrm_step_begin(cache), KVRM_WAIT);
  kvrm_step step = {};
  step.struct_size = sizeof(step);
  EXPECT_EQ(kvrm_step_latch(cache, &step), KVRM_OK);
  EXPECT_EQ(kvrm_step_retire(cache, nullptr), KVRM_OK);
  EXPECT_EQ(kvrm_extend(cache, 0, 8), KVRM_OK);
  bench.Plan();
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 8, 1), KVRM_OK);
  EXPECT_EQ(kvrm_step_abandon(cache), KVRM_OK);
  EXPECT_EQ(kvrm_length(cache, 0), 0u);
  EXPECT_EQ(kvrm_truncate(cache, 0, 0), KVRM_OK);
}

TEST(CApi, IdentityIsNotReopenedInTheStepItLeft) {
  Bench bench(Options());
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OK);
  EXPECT_EQ(kvrm_extend(cache, 0, 8), KVRM_OK);
  bench.Plan();
  EXPECT_EQ(kvrm_step_add_row(cache, 0, kTokens.data(), 8, 1), KVRM_OK);
  EXPECT_EQ(kvrm_release(cache, 0), KVRM_OK);
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OPEN);
  bench.Run();
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OK);
  EXPECT_EQ(kvrm_length(cache, 0), 0u);
}

// A device whose copies are made when they are waited for.
struct LateDevice {
  std::vector<std::vector<std::uint64_t>> memory;
  std::vector<kvrm_copy> waiting;
  std::uint64_t last_flight = 0;
  bool refuse = false;

  kvrm_device Calls() {
    return {.struct_size = sizeof(kvrm_device),
            .user = this,
            .reserve = [](void* user, std::size_t bytes, const char*) -> void* {
              auto& self = *static_cast<LateDevice*>(user);
              if (self.refuse) return nullptr;
              return self.memory.emplace_back(bytes / 8 + 1).data();
            },
            .copy =
                [](void* user, std::uint64_t flight, const kvrm_copy* copies, std::size_t count) {
                  auto& self = *static_cast<LateDevice*>(user);
                  EXPECT_EQ(flight, self.last_flight + 1);
                  self.last_flight = flight;
                  self.waiting.assign(copies, copies + count);
                },
            .wait =
                [](void* user, std::uint64_t flight) {
                  auto& self = *static_cast<LateDevice*>(user);
                  EXPECT_EQ(flight, self.last_flight);
                  for (const kvrm_copy& copy : std::exchange(self.waiting, {}))
                    std::memcpy(copy.target, copy.source, copy.bytes);
                },
            .reserve_host = nullptr,
            .copy_host = nullptr};
  }
};

TEST(CApi, CallbacksMoveWhatAForkCopies) {
  LateDevice late;
  const kvrm_device calls = late.Calls();
  kvrm_options options = Options();
  options.device = &calls;
  Bench bench(options);
  EXPECT_EQ(kvrm_open(bench.cache, 0, 0), KVRM_OK);
  bench.Write(0, 20);
  EXPECT_EQ(late.last_flight, 0u);  // Steady state copies nothing.
  std::size_t bytes = 0;
  std::size_t window_offset = 0;
  auto* const records =
      static_cast<std::uint64_t*>(kvrm_memory(bench.cache, &bytes, &window_offset));
  EXPECT_EQ(bytes, (9 + 12) * kBlockTokens * 8u);
  EXPECT_EQ(window_offset, 9 * kBlockTokens * 8u);
  EXPECT_EQ(kvrm_block_bytes(bench.cache), kBlockTokens * 8u);
  EXPECT_EQ(kvrm_fork(bench.cache, 1, 0, 20, 0), KVRM_OK);
  EXPECT_EQ(kvrm_extend(bench.cache, 1, 21), KVRM_OK);
  for (std::size_t slot = kBlockTokens; slot < 9 * kBlockTokens; ++slot)
    records[slot] = slot;
  // One step for the block of its own, one for the window.
  int num_steps = 0;
  kvrm_status status = KVRM_WAIT;
  for (; status == KVRM_WAIT && num_steps < 8; ++num_steps) {
    bench.Plan();
    status = kvrm_step_add_row(bench.cache, 1, kTokens.data(), 1, 1);
    bench.Run();
  }
  EXPECT_EQ(status, KVRM_OK);
  EXPECT_GT(late.last_flight, 0u);
  const kvrm_stats stats = bench.stats();
  EXPECT_EQ(stats.num_cow_blocks, 1u);
  EXPECT_EQ(stats.num_staged_bytes, 2 * kvrm_block_bytes(bench.cache));
  const std::uint64_t* const window = records + (9 + 4) * kBlockTokens;
  for (std::uint32_t t = 1; t < 20; ++t)
    EXPECT_EQ(window[t] % kBlockTokens, t % kBlockTokens);
  EXPECT_NE(window[0], 0u);
}

// A device with memory of its own: what crosses comes with its direction.
struct TwoMemories {
  std::vector<std::vector<std::uint64_t>> memory;
  std::vector<std::uint64_t> host;
  std::array<std::size_t, 3> num_copies = {};  // by direction; 0: inside the device
  std::uint64_t last_flight = 0;

  bool IsOfHost(const void* at) const {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    const auto begin = reinterpret_cast<std::uintptr_t>(host.data());
    return address >= begin && address < begin + 8 * host.size();
  }
  void Copy(std::uint64_t flight, std::uint32_t direction, std::span<const kvrm_copy> copies) {
    EXPECT_TRUE(flight == last_flight || flight == last_flight + 1);
    last_flight = flight;
    num_copies.at(direction) += copies.size();
    for (const kvrm_copy& copy : copies) {
      EXPECT_EQ(IsOfHost(copy.target), direction == KVRM_POOL_TO_HOST);
      EXPECT_EQ(IsOfHost(copy.source), direction == KVRM_HOST_TO_POOL);
      std::memcpy(copy.target, copy.source, copy.bytes);
    }
  }
  kvrm_device Calls() {
    return {.struct_size = sizeof(kvrm_device),
            .user = this,
            .reserve = [](void* user, std::size_t bytes, const char*) -> void* {
              return static_cast<TwoMemories*>(user)->memory.emplace_back(bytes / 8 + 1).data();
            },
            .copy =
                [](void* user, std::uint64_t flight, const kvrm_copy* copies, std::size_t count) {
                  static_cast<TwoMemories*>(user)->Copy(flight, 0, {copies, count});
                },
            .wait =
                [](void* user, std::uint64_t flight) {
                  EXPECT_LE(flight, static_cast<TwoMemories*>(user)->last_flight);
                },
            .reserve_host = [](void* user, std::size_t bytes, const char*) -> void* {
              auto& self = *static_cast<TwoMemories*>(user);
              self.host.resize(bytes / 8);
              return self.host.data();
            },
            .copy_host =
                [](void* user, std::uint64_t flight, std::uint32_t direction,
                   const kvrm_copy* copies, std::size_t count) {
                  static_cast<TwoMemories*>(user)->Copy(flight, direction, {copies, count});
                }};
  }
};

kvrm_options TierOptions() {
  kvrm_options options = Options();
  options.view = "extents";
  options.host_blocks = 5;
  options.max_move_bytes_per_step = 2 * kBlockTokens * 8;
  return options;
}

TEST(CApi, ParkedSequencesComeBackUnderAnotherName) {
  TwoMemories memories;
  const kvrm_device calls = memories.Calls();
  kvrm_options options = TierOptions();
  options.device = &calls;
  Bench bench(options);
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(memories.host.size() * 8, 5 * kvrm_block_bytes(cache));
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OK);
  bench.Write(0, 50);
  auto* const records = static_cast<std::uint64_t*>(kvrm_memory(cache, nullptr, nullptr));
  for (std::size_t slot = kBlockTokens; slot < 9 * kBlockTokens; ++slot)
    records[slot] = slot;
  std::uint32_t parked = 99;
  ASSERT_EQ(kvrm_park(cache, 0, &parked), KVRM_OK);
  EXPECT_EQ(kvrm_length(cache, 0), 0u);
  EXPECT_EQ(kvrm_release(cache, 0), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_resume(cache, parked, 1, nullptr, 0), KVRM_WAIT);
  EXPECT_EQ(bench.message(), "parked: " + std::to_string(parked) + " is not copied out yet");
  for (int step = 0; step < 2; ++step) {  // Four blocks, two a step.
    EXPECT_EQ(kvrm_check_parked(cache, parked), KVRM_WAIT);
    bench.Plan();
    EXPECT_EQ(kvrm_park(cache, 0, &parked), KVRM_ORDER);
    bench.Run();
  }
  EXPECT_EQ(kvrm_check_parked(cache, parked), KVRM_OK);
  EXPECT_EQ(bench.stats().num_parked_blocks, 4u);
  EXPECT_EQ(bench.stats().num_free, 8u);
  EXPECT_GT(memories.num_copies[KVRM_POOL_TO_HOST], 0u);
  std::memset(records, 0xff, 9 * kvrm_block_bytes(cache));

  ASSERT_EQ(kvrm_resume(cache, parked, 2, nullptr, 64), KVRM_OK);
  EXPECT_EQ(kvrm_resume(cache, parked, 1, nullptr, 0), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_length(cache, 2), 50u);
  EXPECT_EQ(kvrm_truncate(cache, 2, 8), KVRM_WAIT);
  EXPECT_EQ(kvrm_trim(cache, 2, 0, 16), KVRM_WAIT);
  EXPECT_EQ(kvrm_fork(cache, 1, 2, 16, 0), KVRM_WAIT);
  EXPECT_EQ(bench.message(), "parent: 2 is coming back from the host tier");
  EXPECT_EQ(kvrm_extend(cache, 2, 51), KVRM_OK);
  bench.Plan();
  EXPECT_EQ(kvrm_step_add_row(cache, 2, kTokens.data(), 1, 1), KVRM_WAIT);
  bench.Run();
  bench.Plan();
  EXPECT_EQ(kvrm_step_add_row(cache, 2, kTokens.data(), 1, 1), KVRM_OK);
  EXPECT_EQ(kvrm_step_commit(cache, 0, 2), KVRM_OK);
  kvrm_step step = {};
  step.struct_size = sizeof(step);
  EXPECT_EQ(kvrm_step_latch(cache, &step), KVRM_OK);
  EXPECT_EQ(kvrm_step_land(cache), KVRM_OK);
  EXPECT_GT(memories.num_copies[KVRM_HOST_TO_POOL], 0u);
  EXPECT_EQ(memories.num_copies[0], 0u);
  // It lay in one run before, wherever that began.
  const std::uint64_t first = records[std::size_t{step.runs[0].start} * kBlockTokens];
  EXPECT_EQ(first % kBlockTokens, 0u);
  EXPECT_LT(first, 9u * kBlockTokens);
  std::uint32_t position = 0;
  for (std::uint32_t r = 0; r < step.num_runs[0]; ++r) {
    const std::uint64_t* const run = records + std::size_t{step.runs[r].start} * kBlockTokens;
    for (std::uint32_t t = 0; t < step.runs[r].num_blocks * kBlockTokens && position < 50; ++t)
      EXPECT_EQ(run[t], first + position++);
  }
  EXPECT_EQ(position, 50u);
  EXPECT_EQ(kvrm_step_retire(cache, nullptr), KVRM_OK);
  EXPECT_EQ(bench.stats().num_host_free, 5u);
}

TEST(CApi, TiersThatAreFullOrMissingAnswer) {
  Bench without(Options());
  std::uint32_t parked = 0;
  EXPECT_EQ(kvrm_open(without.cache, 0, 0), KVRM_OK);
  without.Write(0, 20);
  EXPECT_EQ(kvrm_park(without.cache, 0, &parked), KVRM_UNSUPPORTED);
  EXPECT_EQ(kvrm_discard(without.cache, 0), KVRM_ARGUMENT);

  Bench bench(TierOptions());
  kvrm_cache* const cache = bench.cache;
  EXPECT_EQ(kvrm_park(cache, 0, &parked), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_open(cache, 0, 0), KVRM_OK);
  EXPECT_EQ(kvrm_park(cache, 0, nullptr), KVRM_ARGUMENT);
  EXPECT_EQ(kvrm_park(cache, 0, &parked), KVRM_ARGUMENT);
  EXPECT_EQ(bench.message(), "seq: 0 has written nothing");
  EXPECT_EQ(kvrm_open(cache, 1, 0), KVRM_OK);
  bench.Write(0, 60);
  bench.Write(1, 20);
  EXPECT_EQ(kvrm_park(cache, 0, &parked), KVRM_OK);
  std::uint32_t other = 0;
  EXPECT_EQ(kvrm_park(cache, 1, &other), KVRM_FULL);
  EXPECT_EQ(bench.message(), "the host tier has 1 blocks free and cannot take 20 tokens");
  EXPECT_EQ(kvrm_length(cache, 1), 20u);  // Nothing has changed.
  EXPECT_EQ(kvrm_discard(cache, parked), KVRM_OK);
  EXPECT_EQ(kvrm_discard(cache, parked), KVRM_NOT_OPEN);
  EXPECT_EQ(kvrm_park(cache, 1, &other), KVRM_OK);
  EXPECT_EQ(kvrm_discard(cache, 3), KVRM_ARGUMENT);
  EXPECT_EQ(bench.message(), "parked is 3; max_parked is 3");
}

TEST(CApi, DeviceWithoutMemoryIsAnAnswer) {
  LateDevice late;
  late.refuse = true;
  const kvrm_device calls = late.Calls();
  kvrm_options options = Options();
  options.device = &calls;
  kvrm_cache* cache = nullptr;
  std::array<char, 192> why = {};
  EXPECT_EQ(kvrm_create(&options, &cache, why.data(), why.size()), KVRM_START);
  EXPECT_NE(std::string(why.data()).find("2688 bytes"), std::string::npos) << why.data();
  late.refuse = false;
  options.view = "mapped";
  EXPECT_EQ(kvrm_create(&options, &cache, why.data(), why.size()), KVRM_START);
}

// What lies behind the fields that a caller of the first version knows is not looked at.
TEST(CApi, OlderCallersHaveNoTier) {
  LateDevice late;
  kvrm_device calls = late.Calls();
  std::memset(&calls.reserve_host, 0xee, sizeof(calls) - offsetof(kvrm_device, reserve_host));
  calls.struct_size = offsetof(kvrm_device, reserve_host);
  kvrm_options options = Options();
  options.device = &calls;
  options.struct_size = offsetof(kvrm_options, host_blocks);
  options.host_blocks = options.max_parked = 0xeeeeeeee;
  Bench bench(options);
  EXPECT_EQ(bench.stats().num_host_blocks, 0u);
  EXPECT_EQ(late.memory.size(), 1u);
}

TEST(CApi, OlderCallersGetWhatTheirStructsHoldAndNoMore) {
  Bench bench(Options());
  kvrm_stats stats;
  std::memset(&stats, 0xee, sizeof(stats));
  stats.struct_size = offsetof(kvrm_stats, num_free);
  EXPECT_EQ(kvrm_get_stats(bench.cache, &stats), KVRM_OK);
  EXPECT_EQ(stats.num_blocks, 8u);
  EXPECT_EQ(stats.num_free, 0xeeeeeeeeu);
  EXPECT_EQ(stats.struct_size, offsetof(kvrm_stats, num_free));
  EXPECT_STREQ(kvrm_status_name(KVRM_WAIT), "KVRM_WAIT");
  EXPECT_STREQ(kvrm_message(nullptr), "cache is null");
}

TEST(CApi, AnyCallsInAnyOrderAreAnswered) {
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    kvrm::Rng rng(seed, "calls");
    std::vector<std::uint8_t> bytes(4000);
    for (std::uint8_t& byte : bytes)
      byte = static_cast<std::uint8_t>(rng.Below(256));
    kvrm::RandomCalls(bytes).Run();
  }
}

}  // namespace
