// SPDX-License-Identifier: Apache-2.0
// FairShare: whose turn it is among tenants that all have work (start-time fair queueing).
//
// Every tenant has a virtual time, which grows by the tokens computed for it over its weight; who
// has the least is next. A tenant that comes back after having had nothing to do starts where the
// others are, so it can neither save up turns nor is punished for the past beyond them.
//
// Threading: one thread. Memory: reserved by the constructor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"

namespace kvrm {

class FairShare {
 public:
  // At most `max_sequences` are entered at once.
  explicit FairShare(std::uint32_t max_sequences) : tenants_(max_sequences) {}

  // A sequence of this tenant waits or runs from now on. Returns the tenant's place, which is the
  // same until its last sequence has left. The last weight counts. Requires: weight > 0.
  std::uint32_t Enter(std::uint64_t tenant, double weight) noexcept {
    CHECK(weight > 0);
    std::uint32_t place = static_cast<std::uint32_t>(tenants_.size());
    double begin = 0;
    bool any = false;
    for (std::uint32_t i = 0; i < tenants_.size(); ++i) {
      const Tenant& t = tenants_[i];
      if (t.id == tenant && (t.num_sequences > 0 || t.is_known)) place = i;
      if (t.num_sequences == 0) continue;
      begin = any ? std::min(begin, t.time) : t.time;
      any = true;
    }
    if (place == tenants_.size()) place = Forget();
    Tenant& t = tenants_[place];
    if (t.num_sequences == 0) {
      t = {.id = tenant, .time = any ? std::max(t.time, begin) : t.time, .is_known = true};
    }
    t.weight = weight;
    ++t.num_sequences;
    return place;
  }
  void Leave(std::uint32_t place) noexcept {
    CHECK(tenants_[place].num_sequences > 0);
    --tenants_[place].num_sequences;
  }
  void Charge(std::uint32_t place, std::uint32_t num_tokens) noexcept {
    tenants_[place].time += num_tokens / tenants_[place].weight;
  }
  double Time(std::uint32_t place) const noexcept { return tenants_[place].time; }

 private:
  struct Tenant {
    std::uint64_t id = 0;
    double time = 0;
    double weight = 1;
    std::uint32_t num_sequences = 0;
    bool is_known = false;
  };

  // Makes room: of the tenants without sequences, the one that is furthest behind has the least to
  // be held against it.
  std::uint32_t Forget() noexcept {
    std::uint32_t place = static_cast<std::uint32_t>(tenants_.size());
    for (std::uint32_t i = 0; i < tenants_.size(); ++i) {
      if (tenants_[i].num_sequences > 0) continue;
      if (place == tenants_.size() || tenants_[i].time < tenants_[place].time) place = i;
    }
    CHECK(place < tenants_.size());
    tenants_[place] = {};
    return place;
  }

  std::vector<Tenant> tenants_;
};

}  // namespace kvrm
