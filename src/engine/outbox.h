// SPDX-License-Identifier: Apache-2.0
// Outbox: what the engine thread hands to the consumer, in queues that never overflow because a
// step asks for room first.
//
// What belongs to an event is pushed before it: a consumer that takes events, and then everything
// else that waits, has all that belongs to them.
//
// Threading: pushes on the engine thread, pops on the consumer's. Memory: reserved at construction.
#pragma once

#include <cstddef>
#include <utility>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "engine/request.h"

namespace kvrm {

struct OutboxLimits {
  std::size_t step_events = 0;    // most of one step
  std::size_t last_events = 0;    // kept free: to end everything at once
  std::size_t step_logprobs = 0;  // most of one step
  std::size_t step_embeddings = 0;
};

class Outbox {
 public:
  explicit Outbox(const OutboxLimits& limits)
      : limits_(limits),
        events_(16 * (limits.step_events + limits.last_events)),
        logprobs_(8 * limits.step_logprobs),
        embeddings_(8 * limits.step_embeddings) {}

  bool EventsFit(std::size_t count) const noexcept {
    return events_.capacity() - events_.size() >= count + limits_.last_events;
  }
  bool StepFits() const noexcept {
    return EventsFit(limits_.step_events) &&
           logprobs_.capacity() - logprobs_.size() >= limits_.step_logprobs &&
           embeddings_.capacity() - embeddings_.size() >= limits_.step_embeddings;
  }

  // Requires: there is room, which was asked for or is what last_events keeps.
  void Push(TokenEvent event) noexcept {
    CHECK(events_.TryPush(std::move(event)));
    ++num_events_;
  }
  void Push(TopLogprobs logprobs) noexcept { CHECK(logprobs_.TryPush(std::move(logprobs))); }
  void Push(Embedding embedding) noexcept { CHECK(embeddings_.TryPush(std::move(embedding))); }
  std::uint64_t num_events() const noexcept { return num_events_; }  // ever pushed

  BoundedQueue<TokenEvent>& events() noexcept { return events_; }
  BoundedQueue<TopLogprobs>& logprobs() noexcept { return logprobs_; }
  BoundedQueue<Embedding>& embeddings() noexcept { return embeddings_; }
  std::size_t reserved_bytes() const noexcept {
    return events_.reserved_bytes() + logprobs_.reserved_bytes() + embeddings_.reserved_bytes();
  }

 private:
  const OutboxLimits limits_;
  BoundedQueue<TokenEvent> events_;
  BoundedQueue<TopLogprobs> logprobs_;
  BoundedQueue<Embedding> embeddings_;
  std::uint64_t num_events_ = 0;
};

}  // namespace kvrm
