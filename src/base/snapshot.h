// SPDX-License-Identifier: Apache-2.0
// Snapshot: a small struct that one thread stores again and again and others read whole.
//
// A sequence lock over atomic words: the writer never waits; a reader that meets a store in
// progress reads once more. Threading: Store from one thread, Load from any. Memory: none beyond
// its fields.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace kvrm {

template <typename T>
class Snapshot {
  static_assert(std::is_trivially_copyable_v<T> && std::is_default_constructible_v<T>);
  static constexpr std::size_t kWords = (sizeof(T) + 7) / 8;

 public:
  void Store(const T& value) noexcept {
    std::array<std::uint64_t, kWords> words = {};
    std::memcpy(words.data(), &value, sizeof(T));
    const std::uint64_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    // Release on every word: who reads one of this store has the odd version before it.
    for (std::size_t i = 0; i < kWords; ++i)
      words_[i].store(words[i], std::memory_order_release);
    version_.store(version + 2, std::memory_order_release);
  }
  T Load() const noexcept {
    std::array<std::uint64_t, kWords> words = {};
    for (;;) {
      const std::uint64_t version = version_.load(std::memory_order_acquire);
      // Acquire keeps the second look at the version behind them.
      for (std::size_t i = 0; i < kWords; ++i)
        words[i] = words_[i].load(std::memory_order_acquire);
      if (version % 2 == 0 && version_.load(std::memory_order_relaxed) == version) break;
    }
    T value;
    std::memcpy(static_cast<void*>(&value), words.data(), sizeof(T));
    return value;
  }

 private:
  std::atomic<std::uint64_t> version_{0};  // odd while a store is in progress
  std::array<std::atomic<std::uint64_t>, kWords> words_ = {};
};

}  // namespace kvrm
