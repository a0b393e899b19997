/* SPDX-License-Identifier: Apache-2.0
 * The smallest program over kvrm.h: four sequences grow a token a step, are forked and cut back,
 * and every record is read back from its dense window. The "model" of a token is a stamp. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "kvrm/kvrm.h"

enum { kSeqs = 4, kBlockTokens = 16, kBlocksPerSeq = 4, kWindow = kBlockTokens * kBlocksPerSeq };

static int fail(kvrm_cache* cache, const char* what, kvrm_status status) {
  fprintf(stderr, "%s: %s %s\n", what, kvrm_status_name(status), kvrm_message(cache));
  return 1;
}

/* The graph: writes each token's record home and into its window, then reads the whole window. */
static int run_step(kvrm_cache* cache, uint32_t* records) {
  kvrm_step step = {.struct_size = sizeof step};
  kvrm_status status = kvrm_step_latch(cache, &step);
  if (status == KVRM_OK) status = kvrm_step_land(cache);
  if (status != KVRM_OK) return fail(cache, "latch", status);
  for (uint32_t t = 0; t < step.num_tokens; ++t) {
    const uint32_t stamp = (uint32_t)step.positions[t] + 1;
    records[step.slots[t]] = stamp;
    records[step.mirrors[t]] = stamp;
  }
  for (uint32_t row = 0; row < step.num_rows; ++row) {
    const uint32_t* window = records + step.runs[row * step.max_runs].start * kBlockTokens;
    const uint32_t length = (uint32_t)step.positions[step.row_start[row + 1] - 1] + 1;
    for (uint32_t p = 0; p < length; ++p) {
      if (window[p] != p + 1) {
        fprintf(stderr, "sequence %" PRIu32 ", position %" PRIu32 ": %" PRIu32 "\n",
                step.row_seq[row], p, window[p]);
        return 1;
      }
    }
  }
  status = kvrm_step_retire(cache, NULL);
  return status == KVRM_OK ? 0 : fail(cache, "retire", status);
}

static int serve(kvrm_cache* cache) {
  uint32_t* records = kvrm_memory(cache, NULL, NULL);
  const int32_t token = 0;
  kvrm_status status = kvrm_open(cache, 0, 0);
  if (status != KVRM_OK) return fail(cache, "open", status);
  for (uint32_t n = 0; n < 200; ++n) {
    const uint32_t child = 1 + n / 8 % (kSeqs - 1);
    if (n % 8 == 5 && kvrm_length(cache, 0) > 3) { /* A fork, inside a block most of the time. */
      kvrm_truncate(cache, 0, kvrm_length(cache, 0) - n % 3);
      kvrm_release(cache, child);
      status = kvrm_fork(cache, child, 0, kvrm_length(cache, 0), 0);
      if (status < 0) return fail(cache, "fork", status);
    }
    if (kvrm_length(cache, 0) + 4 > kWindow) kvrm_truncate(cache, 0, kWindow / 3);
    uint32_t rows[kSeqs], num_rows = 0;
    for (uint32_t s = 0; s < kSeqs; ++s) {
      status = kvrm_extend(cache, s, kvrm_length(cache, s) + 1);
      if (status == KVRM_OK) rows[num_rows++] = s;
    }
    status = kvrm_step_begin(cache);
    if (status == KVRM_OK) status = kvrm_step_plan(cache);
    if (status != KVRM_OK) return fail(cache, "plan", status);
    for (uint32_t r = 0; r < num_rows; ++r) {
      status = kvrm_step_add_row(cache, rows[r], &token, 1, 1);
      if (status < 0) return fail(cache, "add_row", status); /* KVRM_WAIT: next time. */
    }
    status = kvrm_step_commit(cache, 0, kSeqs);
    if (status != KVRM_OK) return fail(cache, "commit", status);
    if (run_step(cache, records) != 0) return 1;
  }
  return 0;
}

int main(void) {
  kvrm_options options;
  kvrm_cache* cache = NULL;
  char why[160];
  kvrm_options_init(&options, sizeof options);
  options.layer_token_bytes = sizeof(uint32_t);
  options.num_blocks = 1 + 12;
  options.max_seqs = kSeqs;
  options.max_blocks_per_seq = kBlocksPerSeq;
  options.max_rows = options.max_tokens = options.max_samples = kSeqs;
  if (kvrm_create(&options, &cache, why, sizeof why) != KVRM_OK) {
    fprintf(stderr, "%s\n", why);
    return 1;
  }
  const int result = serve(cache);
  kvrm_stats stats = {.struct_size = sizeof stats};
  kvrm_get_stats(cache, &stats);
  printf("api %" PRIu32 ": %" PRIu64 " blocks copied on write, %" PRIu64 " bytes staged, %s\n",
         kvrm_api_version(), stats.num_cow_blocks, stats.num_staged_bytes,
         result == 0 ? "PASS" : "FAIL");
  kvrm_destroy(cache);
  return result;
}
