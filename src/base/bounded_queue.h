// SPDX-License-Identifier: Apache-2.0
// BoundedQueue<T>: the only channel between threads.
//
// A ring of cells with sequence numbers (the bounded multi-producer multi-consumer queue of
// Vyukov): any number of producers and consumers, no locks, no allocation after construction.
// A full queue is an answer, not an error. T's moves must not throw.
//
//   Q1  cell.sequence == index            the cell is empty and waits for push number `index`
//   Q2  cell.sequence == index + 1        the cell is full and waits for pop number `index`
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/check.h"

namespace kvrm {

template <typename T>
class BoundedQueue {
  static_assert(std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>);

 public:
  // Holds at most `capacity` items, rounded up to a power of two.
  explicit BoundedQueue(std::size_t capacity)
      : mask_(std::bit_ceil(capacity < 2 ? std::size_t{2} : capacity) - 1),
        cells_(std::make_unique<Cell[]>(mask_ + 1)) {
    for (std::size_t i = 0; i <= mask_; ++i)
      cells_[i].sequence.store(i, std::memory_order_relaxed);
  }
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Returns false, and leaves `item` as it was, when the queue is full.
  bool TryPush(T&& item) noexcept {
    std::size_t index = head_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[index & mask_];
      const std::size_t sequence = cell.sequence.load(std::memory_order_acquire);
      if (sequence == index) {  // Q1
        if (head_.compare_exchange_weak(index, index + 1, std::memory_order_relaxed)) {
          cell.item = std::move(item);
          cell.sequence.store(index + 1, std::memory_order_release);
          return true;
        }
      } else if (sequence < index) {
        return false;
      } else {
        index = head_.load(std::memory_order_relaxed);
      }
    }
  }

  std::optional<T> TryPop() noexcept {
    std::size_t index = tail_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[index & mask_];
      const std::size_t sequence = cell.sequence.load(std::memory_order_acquire);
      if (sequence == index + 1) {  // Q2
        if (tail_.compare_exchange_weak(index, index + 1, std::memory_order_relaxed)) {
          std::optional<T> item(std::move(cell.item));
          cell.item = T();
          cell.sequence.store(index + mask_ + 1, std::memory_order_release);
          return item;
        }
      } else if (sequence < index + 1) {
        return std::nullopt;
      } else {
        index = tail_.load(std::memory_order_relaxed);
      }
    }
  }

  std::size_t capacity() const noexcept { return mask_ + 1; }
  std::size_t reserved_bytes() const noexcept { return capacity() * sizeof(Cell); }
  // How many items there were a moment ago.
  std::size_t size() const noexcept {
    const std::size_t head = head_.load(std::memory_order_relaxed);
    const std::size_t tail = tail_.load(std::memory_order_relaxed);
    return head > tail ? head - tail : 0;
  }

 private:
  struct Cell {
    std::atomic<std::size_t> sequence{0};
    T item{};
  };
  const std::size_t mask_;
  const std::unique_ptr<Cell[]> cells_;
  alignas(64) std::atomic<std::size_t> head_{0};  // Next push.
  alignas(64) std::atomic<std::size_t> tail_{0};  // Next pop.
};

}  // namespace kvrm
