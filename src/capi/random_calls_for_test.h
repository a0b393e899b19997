// SPDX-License-Identifier: Apache-2.0
// RandomCalls: any calls of kvrm.h in any order with any arguments. Whatever a caller does, the
// answer is a status: nothing aborts, and at the end everything can be released. Tests only.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "capi/kvrm.h"

namespace kvrm {

class RandomCalls {
 public:
  explicit RandomCalls(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  void Run() {
    constexpr std::array<const char*, 6> kViews = {"extents",       "paged",  "staged",
                                                   "staged-layers", "static", "static-padded"};
    constexpr std::size_t kFirstStatic = 4;
    kvrm_options options;
    kvrm_options_init(&options, sizeof(options));
    options.layer_token_bytes = 8;
    const std::size_t view = Byte() % kViews.size();
    options.view = kViews[view];
    options.placement = Byte() % 2 == 0 ? "in-place" : "scattered";
    options.num_blocks = view >= kFirstStatic ? 1 + kSeqs * kBlocks : 2 + Byte() % 16u;
    options.max_seqs = kSeqs;
    options.max_blocks_per_seq = kBlocks;
    options.max_rows = 3;
    options.max_tokens = 40;
    options.max_samples = 3;
    options.max_runs = 2 + Byte() % 3u;
    options.max_groups = 1 + Byte() % 8u;
    options.ring_entries = 1 + Byte() % 4u;
    options.max_move_bytes_per_step = 128 * (1u + Byte() % 4u);
    options.prefix_cache = Byte() % 2u;
    options.host_blocks = Byte() % 8u;
    options.max_parked = Byte() % 4u;
    CHECK(kvrm_create(&options, &cache_, nullptr, 0) == KVRM_OK);
    for (std::int32_t& token : tokens_)
      token = Byte() % 2;
    const kvrm_origin origin = {"m", 1, nullptr, 0};
    CHECK(kvrm_prefix_root(cache_, &origin, &keys_[0]) == KVRM_OK);
    for (std::size_t i = 0; i < keys_.size(); ++i)
      kvrm_prefix_next(&keys_[i == 0 ? 0 : i - 1], &tokens_[i * 16], 16, &keys_[i]);
    while (!bytes_.empty())
      Call();
    End();
    kvrm_destroy(cache_);
  }

 private:
  static constexpr std::uint32_t kSeqs = 4;
  static constexpr std::uint32_t kBlocks = 4;

  std::uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  // An identity, now and then one that does not exist.
  std::uint32_t Seq() { return Byte() % 16 == 15 ? 0xffffffffu : Byte() % kSeqs; }
  // A number of tokens, in range most of the time.
  std::uint32_t Tokens() {
    return Byte() % 16 == 15 ? 0xfffffff0u + Byte() % 16 : Byte() % (16 * kBlocks + 2);
  }
  kvrm_prefix Prefix() { return {tokens_.data(), Byte() % 65u, keys_.data(), Byte() % 5u}; }

  void Call() {
    const std::uint8_t kind = Byte() % 24;
    if (kind < 10) {
      CallOnSequence(kind);
    } else if (kind < 20) {
      CallOnStep(kind);
    } else {
      CallOnTier(kind);
    }
    CHECK(kvrm_message(cache_) != nullptr);
  }
  void CallOnSequence(std::uint8_t kind) {
    const std::uint32_t seq = Seq();
    const kvrm_prefix prefix = Prefix();
    switch (kind) {
      case 0:
        kvrm_open(cache_, seq, Tokens());
        break;
      case 1:
        kvrm_open_cached(cache_, seq, &prefix, Tokens(), nullptr);
        break;
      case 2:
        kvrm_fork(cache_, seq, Seq(), Byte() % 2 == 0 ? kvrm_length(cache_, seq) : Tokens(),
                  Tokens() % 32);
        break;
      case 3:
        kvrm_reserve(cache_, seq, Tokens());
        break;
      case 4:
        kvrm_truncate(cache_, seq, Tokens());
        break;
      case 5:
        kvrm_trim(cache_, seq, Tokens(), Tokens());
        break;
      case 6:
        kvrm_release(cache_, seq);
        break;
      case 7:
        kvrm_publish(cache_, seq, &prefix);
        break;
      default:
        kvrm_extend(cache_, seq, kvrm_length(cache_, seq) + Byte() % 24);
    }
  }
  void CallOnTier(std::uint8_t kind) {
    const std::uint32_t seq = Seq();
    const kvrm_prefix prefix = Prefix();
    std::uint32_t parked = Seq();
    switch (kind) {
      case 20:
        kvrm_discard(cache_, parked);
        break;
      case 21:
        kvrm_park(cache_, seq, &parked);
        break;
      case 22:
        kvrm_check_parked(cache_, parked);
        break;
      default:
        kvrm_resume(cache_, parked, seq, Byte() % 2 == 0 ? nullptr : &prefix, Tokens());
    }
  }
  void CallOnStep(std::uint8_t kind) {
    kvrm_step step = {};
    step.struct_size = sizeof(step);
    switch (kind) {
      case 10:
        kvrm_step_abandon(cache_);
        break;
      case 11:
        kvrm_step_begin(cache_);
        break;
      case 12:
        kvrm_step_plan(cache_);
        break;
      case 13:
      case 14: {
        const std::uint32_t seq = Seq();
        const std::uint32_t at = kvrm_length(cache_, seq) % 64;
        const std::uint32_t left = kvrm_target(cache_, seq) - kvrm_length(cache_, seq);
        kvrm_step_add_row(cache_, seq, &tokens_[at], Byte() % 4 == 0 ? Byte() : left, Byte() % 3);
        break;
      }
      case 15:
        kvrm_step_commit(cache_, Byte(), Byte() % 5);
        break;
      case 16:
        kvrm_step_latch(cache_, &step);
        break;
      case 17:
        kvrm_step_land(cache_);
        break;
      case 18:
        kvrm_step_retire(cache_, nullptr);
        break;
      default:  // A whole step, so that something happens.
        kvrm_step_begin(cache_);
        kvrm_step_plan(cache_);
        for (std::uint32_t seq = 0; seq < kSeqs; ++seq)
          kvrm_step_add_row(cache_, seq, tokens_.data(),
                            kvrm_target(cache_, seq) - kvrm_length(cache_, seq), 1);
        kvrm_step_commit(cache_, 0, 3);
        RetireAll();
    }
  }
  void RetireAll() {
    kvrm_step step = {};
    step.struct_size = sizeof(step);
    while (kvrm_step_latch(cache_, &step) == KVRM_OK) {
    }
    kvrm_step_land(cache_);
    while (kvrm_step_retire(cache_, nullptr) == KVRM_OK) {
    }
  }
  // Nothing leaks, whatever has happened.
  void End() {
    kvrm_step_abandon(cache_);
    RetireAll();
    for (std::uint32_t seq = 0; seq < kSeqs; ++seq)
      kvrm_release(cache_, seq);
    for (std::uint32_t parked = 0; parked < kSeqs; ++parked)
      kvrm_discard(cache_, parked);
    CHECK(kvrm_step_begin(cache_) == KVRM_OK && kvrm_step_plan(cache_) == KVRM_OK);
    CHECK(kvrm_step_commit(cache_, 0, 3) == KVRM_OK);
    RetireAll();
    kvrm_stats stats = {};
    stats.struct_size = sizeof(stats);
    CHECK(kvrm_get_stats(cache_, &stats) == KVRM_OK);
    CHECK(stats.num_open == 0 && stats.num_held == 0 && stats.num_limbo == 0);
    CHECK(stats.num_free + stats.num_cached == stats.num_blocks && stats.live_bytes == 0);
    CHECK(stats.num_host_free == stats.num_host_blocks && stats.num_leaving == 0);
    CHECK(stats.num_parking + stats.num_parked + stats.num_resuming == 0);
  }

  std::span<const std::uint8_t> bytes_;
  kvrm_cache* cache_ = nullptr;
  std::array<std::int32_t, 256 + 64> tokens_ = {};  // longer than any row may ask for
  std::array<kvrm_key, kBlocks> keys_ = {};
};

}  // namespace kvrm
