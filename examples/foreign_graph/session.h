// SPDX-License-Identifier: Apache-2.0
// Session: a small serving loop over KvCache and a Program, as an engine would write it, with
// everything random that traffic makes random. Each output token is compared with the reference as
// soon as it is there.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv/kv_cache.h"
#include "program.h"
#include "random.h"
#include "reference.h"
#include "step/prefix_key.h"
#include "step/step_builder.h"

namespace foreign {

struct SessionOptions {
  kvrm::KvView view = kvrm::KvView::kStagedWindows;
  kvrm::PlacementPolicy placement = kvrm::PlacementPolicy::kInPlace;
  // The pool, of what every lane's longest context would need; never less than one such context.
  std::uint32_t pool_percent = 100;
  std::uint32_t max_move_blocks = 8;  // a step
  std::uint32_t max_runs = 4;
  bool prefix_cache = false;
  // Blocks of the host tier, of those of the pool: who is preempted is parked there while it can.
  std::uint32_t host_percent = 0;
  std::uint32_t depth = 1;            // steps in flight: 2 plans one while the other runs
  std::uint32_t sit_out_percent = 0;  // chance of a row to be left out of a step
  std::uint32_t num_drafts = 0;       // speculated tokens a row
  std::uint32_t fork_percent = 0;     // chance, a step, that one sequence is forked
  std::uint32_t abandon_percent = 0;  // chance of a step to be given up before commit
  std::uint64_t seed = 1;
};

struct SessionFigures {
  std::uint64_t num_steps = 0;
  std::uint64_t num_tokens = 0;  // computed, rejected ones included
  std::uint64_t num_compared = 0;
  std::uint64_t num_forks = 0;
  std::uint64_t num_rejected = 0;
  std::uint64_t num_preemptions = 0;
  kvrm::KvStats kv;
};

class Session {
 public:
  // Throws kvrm::StartError when the program's device cannot give the memory.
  Session(Program& program, const SessionOptions& options);
  // Serves every request to its end. Empty, or the first thing that went wrong.
  std::string Serve(const std::vector<Request>& requests);
  const SessionFigures& figures() const { return figures_; }

 private:
  // A request on its way. `tokens` beyond `computed` are known and not yet in the cache.
  struct Job {
    Request request;
    Trace expected;
    std::vector<std::int32_t> tokens;
    std::vector<kvrm::PrefixKey> keys;
    std::uint32_t computed = 0;                 // rows of committed steps included
    std::uint32_t target = 0;                   // slots asked for
    std::optional<kvrm::ParkedId> parked = {};  // where [0, computed) lies while it waits
    std::uint32_t lane = 0;
    std::uint32_t num_waits = 0;  // steps in a row it was left out of for want of its blocks
    bool in_flight = false;
  };
  struct Row {
    std::unique_ptr<Job>* job = nullptr;  // its lane's
    std::uint64_t life = 0;               // of the lane: another one says that the row is void
    std::uint32_t first = 0;
    std::vector<std::int32_t> tokens;
    std::uint32_t num_drafts = 0;
  };
  struct Step {
    kvrm::StepView view;
    std::vector<Row> rows;
  };

  bool Admit(std::uint32_t step);
  bool Start(std::unique_ptr<Job>& waiting);
  bool Open(Job& job, std::uint32_t lane);
  void ForkOne();
  void PlanRows();
  Row RowOf(std::uint32_t lane);
  bool SecureSlots(std::uint32_t lane, std::uint32_t num_tokens);
  void PreemptYoungest(std::uint32_t but_lane);
  void End(std::uint32_t lane, bool back_to_queue);
  bool CommitStep();
  bool ExecuteOldest();
  bool FillCall(const kvrm::StepView& view);
  void Gather(const kvrm::StepView& view);
  bool TakeResults(const Row& row);
  bool Take(Job& job, std::span<const float> logits);
  void NameBlocks(Job& job);
  void Finish(Job& job);
  bool Drain();
  bool Fail(const std::string& what);

  Program& program_;
  const Shape shape_;
  const SessionOptions options_;
  const kvrm::KvLayout layout_;
  Reference reference_;
  kvrm::KvCache cache_;
  kvrm::StepBuilder builder_;
  Random random_;
  std::deque<std::unique_ptr<Job>> waiting_;  // by id
  std::vector<std::unique_ptr<Job>> lanes_;   // [lanes]
  std::vector<std::uint64_t> lives_;          // [lanes]
  std::deque<Step> flying_;
  std::vector<Row> planned_;
  // Arrays of the call.
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint32_t> first_;
  std::vector<std::uint32_t> count_;
  std::vector<std::byte*> home_;
  std::vector<float> logits_;
  std::uint32_t step_tokens_ = 1;
  std::uint32_t next_id_ = 0;
  std::string failure_;
  SessionFigures figures_;
};

}  // namespace foreign
