/* SPDX-License-Identifier: Apache-2.0
 * A program in C99 over kvrm.h alone, run by capi_test.cc: two sequences that share a prefix, steps
 * that write a stamp for every token and read every position back through the descriptor. */
#include <string.h>

#include "capi/kvrm.h"

int kvrm_c99_program(char* why, size_t why_bytes);

enum { kBlockTokens = 16, kMaxSeqs = 2, kMaxTokens = 64 };

typedef struct program {
  kvrm_cache* cache;
  uint32_t* records; /* [slot], one 4-byte record a token */
  int32_t tokens[kMaxSeqs][kMaxTokens];
  uint32_t length[kMaxSeqs];
} program;

/* The token's stamp; the same for a shared prefix, which is the same text. */
static uint32_t stamp(int32_t token, uint32_t position) {
  return (uint32_t)token * 2654435761u + position + 1u;
}

static int run_latched(program* p) {
  kvrm_step step;
  uint32_t row, t;
  memset(&step, 0, sizeof step);
  step.struct_size = sizeof step;
  if (kvrm_step_latch(p->cache, &step) != KVRM_OK || step.version != KVRM_STEP_VERSION) return 1;
  if (kvrm_step_land(p->cache) != KVRM_OK) return 2;
  for (t = 0; t < step.num_tokens; ++t) {
    const uint32_t value = stamp(step.token_ids[t], (uint32_t)step.positions[t]);
    p->records[step.slots[t]] = value;
    if (step.mirrors != NULL) p->records[step.mirrors[t]] = value;
  }
  for (row = 0; row < step.num_rows; ++row) {
    const kvrm_extent* run = step.runs + (size_t)row * step.max_runs;
    const uint32_t seq = step.row_seq[row];
    const uint32_t last = (uint32_t)step.positions[step.row_start[row + 1] - 1];
    uint32_t position = 0, r;
    for (r = 0; r < step.num_runs[row]; ++r) {
      uint32_t i;
      for (i = 0; i < run[r].num_blocks * kBlockTokens && position <= last; ++i, ++position) {
        const uint32_t want = stamp(p->tokens[seq][position], position);
        if (p->records[run[r].start * kBlockTokens + i] != want) return 3;
      }
    }
    if (position != last + 1) return 4;
  }
  return kvrm_step_retire(p->cache, NULL) == KVRM_OK ? 0 : 5;
}

/* Writes tokens until the sequence has `length` of them. */
static int grow(program* p, uint32_t seq, uint32_t length) {
  const uint32_t from = p->length[seq];
  kvrm_status status;
  if (kvrm_extend(p->cache, seq, length) != KVRM_OK) return 10;
  do { /* A step without rows lets what is planned land. */
    if (kvrm_step_begin(p->cache) != KVRM_OK) return 11;
    if (kvrm_step_plan(p->cache) != KVRM_OK) return 12;
    status = kvrm_step_add_row(p->cache, seq, p->tokens[seq] + from, length - from, 1);
    if (status != KVRM_OK && status != KVRM_WAIT) return 13;
    if (kvrm_step_commit(p->cache, 0, kMaxSeqs) != KVRM_OK) return 14;
    if (run_latched(p) != 0) return 15;
  } while (status == KVRM_WAIT);
  p->length[seq] = length;
  return kvrm_length(p->cache, seq) == length ? 0 : 16;
}

static int run(program* p) {
  kvrm_key keys[kMaxTokens / kBlockTokens];
  const kvrm_origin origin = {"model", 5, "tenant", 6};
  kvrm_prefix prefix;
  uint32_t found = 0, i;
  for (i = 0; i < kMaxTokens; ++i)
    p->tokens[0][i] = p->tokens[1][i] = (int32_t)(i * 7 % 31);
  for (i = 40; i < kMaxTokens; ++i)
    p->tokens[1][i] = -1 - (int32_t)i;
  if (kvrm_prefix_root(p->cache, &origin, &keys[0]) != KVRM_OK) return 20;
  kvrm_prefix_next(&keys[0], p->tokens[0], kBlockTokens, &keys[0]);
  for (i = 1; i < kMaxTokens / kBlockTokens; ++i)
    kvrm_prefix_next(&keys[i - 1], p->tokens[0] + i * kBlockTokens, kBlockTokens, &keys[i]);
  prefix.tokens = p->tokens[0];
  prefix.num_tokens = 40;
  prefix.keys = keys;
  prefix.num_keys = 2;
  if (kvrm_open(p->cache, 0, kMaxTokens) != KVRM_OK) return 21;
  if (grow(p, 0, 40) != 0 || kvrm_publish(p->cache, 0, &prefix) != KVRM_OK) return 22;
  if (kvrm_open_cached(p->cache, 1, &prefix, 0, &found) != KVRM_OK || found != 32) return 23;
  p->length[1] = found;
  if (grow(p, 1, 50) != 0 || grow(p, 0, 60) != 0) return 24;
  /* Rejected tokens, then a copy-on-write fork in the place of the second sequence. */
  if (kvrm_truncate(p->cache, 0, 37) != KVRM_OK || kvrm_release(p->cache, 1) != KVRM_OK) return 25;
  p->length[0] = 37;
  if (kvrm_fork(p->cache, 1, 0, 37, 0) != KVRM_OK) return 26;
  p->length[1] = 37;
  for (i = 37; i < kMaxTokens; ++i)
    p->tokens[1][i] = 1000 + (int32_t)i;
  return grow(p, 1, 60) != 0 || grow(p, 0, 64) != 0 ? 27 : 0;
}

int kvrm_c99_program(char* why, size_t why_bytes) {
  kvrm_options options;
  kvrm_stats stats;
  program p;
  int result;
  memset(&p, 0, sizeof p);
  kvrm_options_init(&options, sizeof options);
  options.layer_token_bytes = 4;
  options.num_blocks = 16;
  options.max_seqs = kMaxSeqs;
  options.max_blocks_per_seq = kMaxTokens / kBlockTokens;
  options.max_rows = kMaxSeqs;
  options.max_tokens = kMaxTokens;
  options.max_samples = kMaxSeqs;
  options.prefix_cache = 1;
  if (kvrm_api_version() != KVRM_API_VERSION) return 100;
  if (kvrm_create(&options, &p.cache, why, why_bytes) != KVRM_OK) return 101;
  p.records = (uint32_t*)kvrm_memory(p.cache, NULL, NULL);
  result = run(&p);
  strncpy(why, kvrm_message(p.cache), why_bytes - 1);
  memset(&stats, 0, sizeof stats);
  stats.struct_size = sizeof stats;
  if (result == 0 && kvrm_get_stats(p.cache, &stats) != KVRM_OK) result = 102;
  if (result == 0 && (stats.num_cow_blocks == 0 || stats.num_prefix_hits != 2)) result = 103;
  kvrm_destroy(p.cache);
  return result;
}
