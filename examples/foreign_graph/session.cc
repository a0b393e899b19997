// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <algorithm>
#include <cstring>

namespace foreign {
namespace {

using kvrm::Index;
using kvrm::KvView;
using kvrm::SeqId;

constexpr std::uint32_t kBlockTokens = 16;
// Far beyond what any check needs: who is not done by then never will be.
constexpr std::uint64_t kMaxSteps = 20000;
// A row that waits longer than this is stuck for want of free blocks.
constexpr std::uint32_t kPatience = 8;

std::uint32_t LaneBlocks(const Shape& shape) {
  return shape.window_tokens / kBlockTokens;
}

// KV-RM sees block_bytes and token_bytes only: one layer of one head whose K and V are the two
// halves of the program's record.
kvrm::KvLayout LayoutOf(const Shape& shape) {
  return {.num_layers = 1,
          .num_kv_heads = 1,
          .head_dim = shape.record_bytes / 8,
          .block_tokens = kBlockTokens,
          .dtype = kvrm::DType::kF32};
}

kvrm::KvCacheOptions CacheOptions(const Shape& shape, const SessionOptions& options) {
  const std::uint32_t all = shape.lanes * LaneBlocks(shape);
  const std::uint32_t num_blocks = std::max(LaneBlocks(shape), all * options.pool_percent / 100);
  return {.layout = LayoutOf(shape),
          .num_blocks = 1 + num_blocks,
          .max_seqs = shape.lanes,
          .max_blocks_per_seq = LaneBlocks(shape),
          .max_runs = options.max_runs,
          .max_groups = 16,
          .max_move_bytes_per_step = options.max_move_blocks * LayoutOf(shape).block_bytes(),
          .view = options.view,
          .placement = options.placement,
          .placement_seed = options.seed,
          .prefix_cache = options.prefix_cache,
          .host_blocks = num_blocks * options.host_percent / 100,
          .max_parked = 4 * shape.lanes};
}

kvrm::StepLimits Limits(const Shape& shape, const SessionOptions& options) {
  kvrm::StepLimits limits = {.max_rows = shape.lanes,
                             .max_tokens = shape.lanes * shape.step_tokens,
                             .max_runs = options.max_runs,
                             .max_groups = 16,
                             .max_samples = shape.lanes * shape.step_tokens,
                             .block_tokens = kBlockTokens};
  kvrm::KvCache::RaiseLimits(CacheOptions(shape, options), &limits);
  return limits;
}

}  // namespace

Session::Session(Program& program, const SessionOptions& options)
    : program_(program),
      shape_(program.shape()),
      options_(options),
      layout_(LayoutOf(shape_)),
      reference_(program),
      cache_(CacheOptions(shape_, options), program.device()),
      builder_(Limits(shape_, options), options.depth + 1),
      random_(options.seed),
      lanes_(shape_.lanes),
      lives_(shape_.lanes, 0),
      tokens_(std::size_t{shape_.lanes} * shape_.step_tokens),
      first_(shape_.lanes),
      count_(shape_.lanes),
      home_(tokens_.size()),
      logits_(tokens_.size() * shape_.vocab) {}

std::string Session::Serve(const std::vector<Request>& requests) {
  for (const Request& request : requests) {
    auto job = std::make_unique<Job>();
    job->request = request;
    job->expected = reference_.Run(request);
    job->tokens = request.prompt;
    waiting_.push_back(std::move(job));
    next_id_ = std::max(next_id_, request.id + 1);
  }
  for (std::uint32_t step = 0; failure_.empty(); ++step) {
    const bool idle = std::all_of(lanes_.begin(), lanes_.end(),
                                  [](const std::unique_ptr<Job>& job) { return job == nullptr; });
    if (idle && waiting_.empty() && flying_.empty()) break;
    if (figures_.num_steps > kMaxSteps) {
      Fail("no end after " + std::to_string(kMaxSteps) + " steps: requests are stuck");
      break;
    }
    while (flying_.size() >= options_.depth) {
      if (!ExecuteOldest()) return failure_;
    }
    while (Admit(step)) {
    }
    if (random_.Chance(options_.fork_percent)) ForkOne();
    PlanRows();
    if (!CommitStep()) break;
    if (options_.depth == 1 || planned_.empty()) {
      while (!flying_.empty()) {
        if (!ExecuteOldest()) return failure_;
      }
    }
    cache_.CheckInvariants();
  }
  if (failure_.empty()) Drain();
  figures_.kv = cache_.stats();
  return failure_;
}

// Starts the first waiting request that has arrived, where there is a lane and room.
bool Session::Admit(std::uint32_t step) {
  if (waiting_.empty() || waiting_.front()->request.arrival > step) return false;
  if (!Start(waiting_.front())) return false;
  waiting_.pop_front();
  return true;
}

bool Session::Start(std::unique_ptr<Job>& waiting) {
  const auto free = std::find(lanes_.begin(), lanes_.end(), nullptr);
  if (free == lanes_.end()) return false;
  Job& job = *waiting;
  const auto lane = static_cast<std::uint32_t>(free - lanes_.begin());
  if (!Open(job, lane)) return false;
  job.target = job.computed;
  job.lane = lane;
  job.num_waits = 0;
  job.in_flight = false;
  ++lives_[lane];
  *free = std::move(waiting);
  return true;
}

// With what was parked, or what the prefix cache has.
bool Session::Open(Job& job, std::uint32_t lane) {
  const auto known = static_cast<std::uint32_t>(job.tokens.size());
  const std::uint32_t reserve = std::min(known + 1, shape_.window_tokens);
  NameBlocks(job);
  // At least one token is computed anew: its logits are wanted.
  const auto keys = std::span(job.keys).first((known - 1) / kBlockTokens);
  if (job.parked) {
    if (!cache_.Resume(*job.parked, SeqId{lane}, job.tokens, keys, reserve)) return false;
    job.parked.reset();
    return true;
  }
  const auto found = cache_.OpenCached(SeqId{lane}, job.tokens, keys, reserve);
  if (found) job.computed = *found;
  return found.has_value();
}

// Lets a second request go on from what another has computed: its own seed from there on.
void Session::ForkOne() {
  const auto free = std::find(lanes_.begin(), lanes_.end(), nullptr);
  const std::uint32_t parent = random_.Below(shape_.lanes);
  if (free == lanes_.end() || lanes_[parent] == nullptr) return;
  Job& from = *lanes_[parent];
  const auto known = static_cast<std::uint32_t>(from.tokens.size());
  if (cache_.is_resuming(SeqId{parent})) return;
  if (from.in_flight || from.computed < 2 || known != from.computed + 1) return;
  // A fork inside a block needs slots beyond the length to be given back first.
  cache_.Truncate(SeqId{parent}, from.computed);
  from.target = from.computed;
  const auto lane = static_cast<std::uint32_t>(free - lanes_.begin());
  const std::uint32_t at = from.computed - random_.Below(std::min(from.computed - 1, 20u));
  if (!cache_.Fork(SeqId{lane}, SeqId{parent}, at, 0)) return;
  auto job = std::make_unique<Job>();
  job->request = {.id = next_id_++,
                  .arrival = 0,
                  .prompt = {from.tokens.begin(), from.tokens.begin() + at + 1},
                  .max_new = std::min(12u, shape_.window_tokens - at - 1),
                  .seed = random_.Next()};
  job->expected = reference_.Run(job->request);
  job->tokens = job->request.prompt;
  job->computed = job->target = at;
  job->lane = lane;
  ++lives_[lane];
  *free = std::move(job);
  ++figures_.num_forks;
}

// Decides the rows of the step and makes slots for them.
void Session::PlanRows() {
  planned_.clear();
  std::vector<std::uint32_t> by_age;
  for (std::uint32_t lane = 0; lane < shape_.lanes; ++lane) {
    if (lanes_[lane] != nullptr) by_age.push_back(lane);
  }
  std::sort(by_age.begin(), by_age.end(), [this](std::uint32_t a, std::uint32_t b) {
    return lanes_[a]->request.id < lanes_[b]->request.id;
  });
  for (const std::uint32_t lane : by_age) {
    // An older one may have taken this one's place.
    if (lanes_[lane] == nullptr || lanes_[lane]->in_flight) continue;
    if (random_.Chance(options_.sit_out_percent)) continue;
    Row row = RowOf(lane);
    const auto end = row.first + static_cast<std::uint32_t>(row.tokens.size());
    if (SecureSlots(lane, end)) planned_.push_back(std::move(row));
  }
  // Those that were preempted since have no row.
  std::erase_if(planned_, [this](const Row& row) {
    const auto lane = static_cast<std::size_t>(row.job - lanes_.data());
    return row.life != lives_[lane] || *row.job == nullptr;
  });
}

Session::Row Session::RowOf(std::uint32_t lane) {
  const Job& job = *lanes_[lane];
  const auto pending = static_cast<std::uint32_t>(job.tokens.size()) - job.computed;
  const std::uint32_t count = std::min(pending, shape_.step_tokens);
  const auto begin = job.tokens.begin() + job.computed;
  Row row = {.job = &lanes_[lane],
             .life = lives_[lane],
             .first = job.computed,
             .tokens = {begin, begin + count}};
  if (pending > 1) return row;
  // Drafts: what the request will say, now and then wrong.
  while (row.num_drafts < options_.num_drafts && row.tokens.size() < shape_.step_tokens) {
    const std::size_t at = row.first + row.tokens.size();
    if (at + 1 >= job.expected.tokens.size()) break;
    const bool is_wrong = random_.Chance(40);
    row.tokens.push_back(is_wrong ? static_cast<std::int32_t>(random_.Below(shape_.vocab))
                                  : job.expected.tokens[at]);
    ++row.num_drafts;
  }
  return row;
}

// False: the row is left out of this step.
bool Session::SecureSlots(std::uint32_t lane, std::uint32_t num_tokens) {
  Job& job = *lanes_[lane];
  if (job.num_waits > kPatience) {
    job.num_waits = 0;
    PreemptYoungest(lane);
  }
  while (!cache_.Extend(SeqId{lane}, num_tokens)) {
    // What was preempted a moment ago comes free when the steps in flight have retired.
    if (cache_.stats().num_limbo > 0 && !flying_.empty()) return false;
    const std::uint64_t before = figures_.num_preemptions;
    PreemptYoungest(lane);
    if (figures_.num_preemptions == before) return false;
  }
  job.target = std::max(job.target, num_tokens);
  return true;
}

void Session::PreemptYoungest(std::uint32_t but_lane) {
  std::uint32_t youngest = but_lane;
  for (std::uint32_t lane = 0; lane < shape_.lanes; ++lane) {
    if (lane == but_lane || lanes_[lane] == nullptr) continue;
    if (lanes_[lane]->request.id > lanes_[youngest]->request.id) youngest = lane;
  }
  if (youngest == but_lane) return;
  End(youngest, true);
  ++figures_.num_preemptions;
}

// The single way out of a lane.
void Session::End(std::uint32_t lane, bool back_to_queue) {
  std::unique_ptr<Job> job = std::move(lanes_[lane]);
  lanes_[lane] = nullptr;
  ++lives_[lane];
  // The result of a step in flight is not waited for, so what it writes is computed again.
  if (back_to_queue && !job->in_flight) job->parked = cache_.Park(SeqId{lane});
  if (!job->parked) cache_.Release(SeqId{lane});
  if (!back_to_queue) return;
  const auto at = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& other) {
    return other->request.id > job->request.id;
  });
  waiting_.insert(at, std::move(job));
}

bool Session::CommitStep() {
  if (!builder_.Begin()) return Fail("the ring of descriptors is full");
  cache_.Plan(builder_, builder_.building());
  const bool gives_up = random_.Chance(options_.abandon_percent);
  std::uint32_t longest = 1;
  std::erase_if(planned_, [&](Row& row) {
    Job& job = **row.job;
    const bool added = cache_.AddRow(builder_, {.seq = SeqId{job.lane},
                                                .first_position = row.first,
                                                .tokens = row.tokens,
                                                .num_samples = row.num_drafts + 1});
    job.num_waits = added ? 0 : job.num_waits + 1;
    if (added) longest = std::max(longest, static_cast<std::uint32_t>(row.tokens.size()));
    return !added;
  });
  if (gives_up) {
    builder_.Abandon();
    cache_.Abandon();
    planned_.clear();
    return true;
  }
  const kvrm::StepView view = builder_.Commit(longest == 1 ? 0 : 1, shape_.lanes);
  cache_.Launch(view);
  for (Row& row : planned_) {
    Job& job = **row.job;
    job.computed += static_cast<std::uint32_t>(row.tokens.size());
    job.in_flight = true;
    figures_.num_tokens += row.tokens.size();
  }
  ++figures_.num_steps;
  flying_.push_back({view, planned_});
  return true;
}

bool Session::ExecuteOldest() {
  const kvrm::StepView view = builder_.Latch();
  const Step step = std::move(flying_.front());
  flying_.pop_front();
  if (view.header != step.view.header) return Fail("descriptors are latched out of order");
  cache_.Land();
  if (view.header->num_rows > 0) {
    Gather(view);
    if (!FillCall(view)) return false;
    const bool is_gathered = options_.view == KvView::kStagedLayers;
    const bool is_static = options_.view == KvView::kStatic;
    const std::size_t first_block = is_gathered || is_static ? 1 : cache_.options().num_blocks;
    std::byte* const base = is_gathered ? cache_.layer_buffers().data() : cache_.memory().data();
    program_.Run({.step_tokens = step_tokens_,
                  .tokens = tokens_.data(),
                  .first = first_.data(),
                  .count = count_.data(),
                  .kv = base + first_block * layout_.block_bytes(),
                  .home = home_.data(),
                  .logits = logits_.data()});
  }
  cache_.Retire(builder_.Retire());
  for (const Row& row : step.rows) {
    if (!TakeResults(row)) return false;
  }
  return true;
}

// The view kStagedLayers: what the executor copies itself before it attends. Here a block has one
// layer, so the whole history is gathered before the graph runs.
void Session::Gather(const kvrm::StepView& view) {
  std::vector<kvrm::CopyOp> copies;
  for (const kvrm::TransferGroup& group : view.groups) {
    if (group.kind != kvrm::GroupKind::kLayerSlices) continue;
    copies.push_back(
        {.source = cache_.memory().data() + Index(group.source) * layout_.block_bytes(),
         .target = cache_.layer_buffers().data() + Index(group.target) * layout_.layer_bytes(),
         .bytes = group.num_blocks * layout_.block_bytes()});
  }
  if (!copies.empty()) program_.device().Wait(program_.device().Submit(copies));
}

// Turns a descriptor into the arrays of a dense call. The window of a row is its lane of the
// tensor; that it is so is checked here.
bool Session::FillCall(const kvrm::StepView& view) {
  step_tokens_ = view.header->bucket == 0 ? 1 : shape_.step_tokens;
  std::fill(tokens_.begin(), tokens_.end(), 0);
  std::fill(first_.begin(), first_.end(), 0);
  std::fill(count_.begin(), count_.end(), 0);
  std::fill(home_.begin(), home_.end(), nullptr);
  const bool in_window =
      options_.view == KvView::kStagedWindows || options_.view == KvView::kMapped;
  const std::uint32_t first_block = in_window ? cache_.options().num_blocks : 1;
  for (std::uint32_t r = 0; r < view.header->num_rows; ++r) {
    const std::uint32_t lane = Index(view.row_seq[r]);
    const auto runs = view.RowRuns(r);
    const std::uint32_t window = first_block + lane * LaneBlocks(shape_);
    if (runs.size() != 1 || Index(runs[0].start) != window)
      return Fail("a row's history is not the window of its lane");
    const std::uint32_t begin = view.row_start[r];
    first_[lane] = static_cast<std::uint32_t>(view.positions[begin]);
    count_[lane] = view.row_start[r + 1] - begin;
    for (std::uint32_t t = 0; t < count_[lane]; ++t) {
      const std::size_t at = std::size_t{lane} * step_tokens_ + t;
      tokens_[at] = view.token_ids[begin + t];
      const std::uint32_t shown = window * kBlockTokens + first_[lane] + t;
      if (options_.view == KvView::kStagedWindows && Index(view.mirrors[begin + t]) != shown)
        return Fail("a mirror is not the token's place in its window");
      // In the static and mapped views the window is the home itself.
      const bool has_home =
          options_.view == KvView::kStagedWindows || options_.view == KvView::kStagedLayers;
      if (has_home) {
        home_[at] = cache_.memory().data() +
                    std::size_t{Index(view.slots[begin + t])} * shape_.record_bytes;
      }
    }
  }
  return true;
}

bool Session::TakeResults(const Row& row) {
  const auto lane = static_cast<std::uint32_t>(row.job - lanes_.data());
  if (row.life != lives_[lane]) return true;  // Preempted while the step ran.
  Job& job = **row.job;
  job.in_flight = false;
  const auto count = static_cast<std::uint32_t>(row.tokens.size());
  const auto logits_of = [&](std::uint32_t t) {
    const std::size_t at = std::size_t{lane} * step_tokens_ + t;
    return std::span<const float>(logits_).subspan(at * shape_.vocab, shape_.vocab);
  };
  if (row.first + count < job.tokens.size()) return true;  // The prompt goes on.
  std::uint32_t kept = count - row.num_drafts;
  while (true) {
    if (!Take(job, logits_of(kept - 1))) return false;
    const bool ended = job.tokens.size() == job.expected.tokens.size();
    if (ended || kept == count || row.tokens[kept] != job.tokens.back()) break;
    ++kept;
  }
  figures_.num_rejected += count - kept;
  job.computed = row.first + kept;
  if (kept < count) {
    cache_.Truncate(SeqId{lane}, job.computed);
    job.target = job.computed;
  }
  if (options_.prefix_cache) {
    NameBlocks(job);
    cache_.Publish(SeqId{lane}, std::span(job.tokens).first(job.computed), job.keys);
  }
  if (job.tokens.size() == job.expected.tokens.size()) End(lane, false);
  return true;
}

// Samples the next token and compares both it and its logits with the reference.
bool Session::Take(Job& job, std::span<const float> logits) {
  const auto position = static_cast<std::uint32_t>(job.tokens.size());
  const std::int32_t token = Sample(logits, job.request.seed, position);
  const std::vector<float>& expected = job.expected.logits[position - job.request.prompt.size()];
  ++figures_.num_compared;
  job.tokens.push_back(token);
  const bool same = std::memcmp(logits.data(), expected.data(), logits.size_bytes()) == 0;
  if (same && token == job.expected.tokens[position]) return true;
  std::size_t at = 0;
  while (at + 1 < expected.size() && logits[at] == expected[at])
    ++at;
  return Fail("request " + std::to_string(job.request.id) + ", position " +
              std::to_string(position) + ", lane " + std::to_string(job.lane) + ": token " +
              std::to_string(token) + ", alone " + std::to_string(job.expected.tokens[position]) +
              "; logit " + std::to_string(at) + " is " + std::to_string(logits[at]) + ", alone " +
              std::to_string(expected[at]));
}

// Keys of all full blocks of the known tokens.
void Session::NameBlocks(Job& job) {
  while ((job.keys.size() + 1) * kBlockTokens <= job.tokens.size()) {
    const std::size_t n = job.keys.size();
    const kvrm::PrefixKey parent =
        n == 0 ? kvrm::PrefixRoot("foreign graph", layout_, "") : job.keys.back();
    job.keys.push_back(
        kvrm::NextPrefixKey(parent, std::span(job.tokens).subspan(n * kBlockTokens, kBlockTokens)));
  }
}

// Nothing leaks: with every request ended, every block is free again.
bool Session::Drain() {
  figures_.kv = cache_.stats();
  cache_.DropCached();
  planned_.clear();
  for (int i = 0; i < 3; ++i) {
    if (!builder_.Begin()) return Fail("the ring of descriptors is full");
    cache_.Plan(builder_, builder_.building());
    const kvrm::StepView view = builder_.Commit(0, shape_.lanes);
    cache_.Launch(view);
    flying_.push_back({view, {}});
    if (!ExecuteOldest()) return false;
    cache_.DropCached();
  }
  cache_.CheckInvariants();
  const kvrm::KvStats now = cache_.stats();
  if (now.num_host_free != now.num_host_blocks)
    return Fail("blocks of the host tier are not free at the end");
  if (now.num_free != now.num_blocks || now.live_bytes != 0)
    return Fail(std::to_string(now.num_blocks - now.num_free) + " blocks are not free at the end");
  return true;
}

bool Session::Fail(const std::string& what) {
  if (failure_.empty()) failure_ = what;
  return false;
}

}  // namespace foreign
