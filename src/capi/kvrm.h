/* SPDX-License-Identifier: Apache-2.0
 *
 * kvrm.h: the KV cache beneath a fixed-shape decode program, for C99 and everything that calls C.
 *
 * One kvrm_cache is a pool of blocks, the view that a program reads, the ring of step descriptors
 * and the device that copies. It holds sequences; the program runs steps. Per sequence:
 *
 *   [0, length)          written by committed steps
 *   [length, target)     slots promised by kvrm_extend, written by the step being built
 *   [target, reserved)   credit: kvrm_extend up to here cannot fail
 *
 * The order of calls around a step; a call out of order is answered by KVRM_ORDER:
 *
 *   kvrm_step_retire     of every step that is done, oldest first
 *   kvrm_publish, kvrm_open, kvrm_open_cached, kvrm_fork, kvrm_truncate, kvrm_trim, kvrm_park,
 *                        kvrm_resume, kvrm_discard
 *   kvrm_extend          of the rows of this step; KVRM_FULL: leave the row out, or free memory
 *   kvrm_step_begin      KVRM_WAIT: every descriptor of the ring is in flight, retire one first
 *   kvrm_step_plan       decides what moves
 *   kvrm_step_add_row    once a row; KVRM_WAIT: leave the row out of this step
 *   kvrm_step_commit     seals the descriptor and starts its copies; a step without rows is fine
 *   kvrm_step_latch      (executor) takes the oldest committed step
 *   kvrm_step_land       waits for its copies; then the program runs it
 *
 * kvrm_reserve, kvrm_release, kvrm_extend and kvrm_discard are allowed at any point. kvrm_fork,
 * kvrm_truncate, kvrm_trim and kvrm_park are not between kvrm_step_plan and kvrm_step_commit.
 *
 * Units: lengths and positions in tokens, places in blocks or slots (block * block_tokens + offset
 * in the block), memory in bytes. Block 0 is the sentinel: rows of padding name it and nothing else
 * does. Blocks from num_blocks on are windows: lane s (sequence s) has the max_blocks_per_seq
 * blocks from num_blocks + s * max_blocks_per_seq on. Block b lies at kvrm_memory + b *
 * block_bytes.
 *
 * With host_blocks a sequence can leave the pool and come back: kvrm_park takes room for it in a
 * second memory, tier 1 of kvrm_group, and the steps to come copy it there, as many blocks a step
 * as their budget allows. kvrm_resume opens a sequence with what was parked, and the steps to come
 * copy it back; until then kvrm_step_add_row of it answers KVRM_WAIT. Blocks of tier 1 are numbered
 * from 1 and lie one behind the other in the memory of reserve_host.
 *
 * A block is layer -> token records, num_layers parts of block_tokens * layer_token_bytes bytes.
 * KVRM never looks inside a record.
 *
 * Errors: every call answers with a status. Below zero is a mistake of the caller: nothing has
 * changed and kvrm_message names the field and the limit. Above zero is an answer to plan with.
 * The library aborts only where memory that it owns was overwritten (a descriptor that changed
 * while a step was in flight).
 * Threads: one thread for all calls on one cache but kvrm_step_latch, which one other thread may
 * call. Callbacks run on the calling thread. Distinct caches share nothing.
 * Memory: kvrm_create reserves everything; no other call allocates but kvrm_prefix_root.
 * Lifetimes: pointers in a kvrm_step stay valid, and their content constant, until that step is
 * retired; kvrm_message until the next call on the cache. All handles end with kvrm_destroy.
 * Versions: structs begin with their size as the caller knows them. A library that knows more
 * fields takes the rest as zero (the default) or leaves them out; fields are only ever added at
 * the end. KVRM_API_VERSION changes when that cannot be kept.
 */
#ifndef KVRM_KVRM_H
#define KVRM_KVRM_H
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(KVRM_BUILDS_LIBRARY) && defined(__GNUC__)
#define KVRM_API __attribute__((visibility("default")))
#else
#define KVRM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define KVRM_API_VERSION 1u
/* Of the step descriptor: kvrm_step::version. */
#define KVRM_STEP_VERSION 3u

typedef enum kvrm_status {
  KVRM_OK = 0,
  KVRM_FULL = 1,         /* no room, nothing changed: release or retire something, try again */
  KVRM_WAIT = 2,         /* not in this step: the next kvrm_step_plan moves what is missing */
  KVRM_ARGUMENT = -1,    /* an argument is out of range; the message names it */
  KVRM_ORDER = -2,       /* a call that the order of steps does not allow now */
  KVRM_NOT_OPEN = -3,    /* the sequence is not open; nothing is parked there */
  KVRM_OPEN = -4,        /* the sequence is open already, or its last row is not committed yet */
  KVRM_START = -5,       /* kvrm_create: memory or limits do not allow to start */
  KVRM_UNSUPPORTED = -6, /* the view does not offer this */
  KVRM_INTERNAL = -7
} kvrm_status;

typedef struct kvrm_cache kvrm_cache;

/* One contiguous copy, or `num_pieces` pieces of `bytes`, strides apart. */
typedef struct kvrm_copy {
  const void* source;
  void* target;
  size_t bytes;
  uint32_t num_pieces;
  uint32_t before_layer; /* 0: every copy of such a device lands before its step starts */
  size_t source_stride;
  size_t target_stride;
} kvrm_copy;

/* The direction of copies with the host tier. */
#define KVRM_POOL_TO_HOST 1u
#define KVRM_HOST_TO_POOL 2u

/* What an accelerator offers. Addresses are the device's own: KVRM computes with them and never
 * reads or writes through them. Flights are numbered upwards from 1. */
typedef struct kvrm_device {
  size_t struct_size;
  void* user; /* handed to every call */
  /* Zeroed memory, aligned to 64 bytes at least, for the life of the cache; NULL when there is
   * none. Called by kvrm_create only. */
  void* (*reserve)(void* user, size_t bytes, const char* owner);
  /* Starts the copies and returns. They may land in any order and do not overlap. `copies` is
   * valid during the call only. */
  void (*copy)(void* user, uint64_t flight, const kvrm_copy* copies, size_t num_copies);
  /* Returns when every copy of the flight, and of those before it, can be seen by the program. */
  void (*wait)(void* user, uint64_t flight);
  /* The next two may be NULL: then the host tier is memory of `reserve` and `copy` copies it, which
   * suits a device without memory of its own.
   * Zeroed memory of the host that the device can copy from and to, else as `reserve`. */
  void* (*reserve_host)(void* user, size_t bytes, const char* owner);
  /* As `copy`, for copies between the pool and memory of reserve_host. With it a flight may come in
   * several calls, of `copy` and of this, with the same number. */
  void (*copy_host)(void* user, uint64_t flight, uint32_t direction, const kvrm_copy* copies,
                    size_t num_copies);
} kvrm_device;

typedef struct kvrm_options {
  size_t struct_size;
  uint32_t layer_token_bytes; /* one token's record in one layer; a multiple of 4 */
  uint32_t num_layers;        /* parts of a block; 1 unless the view is "staged-layers" */
  uint32_t block_tokens;      /* a multiple of 16, at most 1024 */
  uint32_t num_blocks;        /* of the pool, sentinel included */
  uint32_t max_seqs;
  uint32_t max_blocks_per_seq; /* the longest context */
  uint32_t max_rows;           /* of a step */
  uint32_t max_tokens;         /* of a step, over all rows */
  uint32_t max_samples;        /* of a step, over all rows */
  uint32_t max_runs;           /* of a row, at least 2; views may raise it (kvrm_step::max_runs) */
  uint32_t max_groups;         /* of a step, at least 1 */
  uint32_t ring_entries;       /* descriptors: steps in flight and one being built; 2 to 8 */
  uint64_t max_move_bytes_per_step; /* at least one block */
  /* "extents", "paged", "staged-layers", "staged", "static", "static-padded", "static-bucket" or
   * "mapped". Programs that read dense contiguous memory: "staged", or "static" to begin with. */
  const char* view;
  const char* placement; /* "in-place", or a policy by name; "scattered" for tests */
  uint64_t placement_seed;
  uint32_t prefix_cache;     /* not 0: keep published blocks until their room is needed */
  const kvrm_device* device; /* NULL: memory of this host, copied by memcpy */
  uint32_t host_blocks;      /* of the host tier; 0: none. The static views have none */
  uint32_t max_parked;       /* sequences there, those on the way included; 0: max_seqs */
} kvrm_options;

typedef struct kvrm_extent {
  uint32_t start; /* block */
  uint32_t num_blocks;
} kvrm_extent;

/* What a group is: kvrm_group::kind. */
#define KVRM_GROUP_BLOCKS 0u       /* whole blocks; the device has copied them when landed */
#define KVRM_GROUP_LAYER_SLICES 1u /* for the executor: slice l to the layer buffer l % 2 */
#define KVRM_GROUP_MAP 2u          /* nothing to do: addresses show other blocks now */

typedef struct kvrm_group {
  uint32_t source; /* block */
  uint32_t target; /* block */
  uint32_t num_blocks;
  uint8_t kind;
  uint8_t source_tier;
  uint8_t target_tier;
  uint8_t priority;
  uint16_t before_layer; /* lands before this layer stores or attends; 0: groups are not cut here */
  uint16_t num_layers;   /* 0: whole blocks; else layers [before_layer, + num_layers) of them */
} kvrm_group;

/* kvrm_step::flags */
#define KVRM_STEP_MIRRORED 1u
#define KVRM_STEP_LAYER_WINDOWS 2u

/* A committed descriptor, read only. A row's tokens are [row_start[r], row_start[r + 1]); its
 * history is runs[r * max_runs ...], num_runs[r] of them, in token order; a run that starts at the
 * sentinel in a live row is a hole and is not attended. */
typedef struct kvrm_step {
  size_t struct_size;
  uint64_t epoch; /* 1 for the first step */
  uint32_t version;
  uint32_t flags;
  uint32_t bucket; /* as given to kvrm_step_commit */
  uint32_t num_rows;
  uint32_t bucket_rows;
  uint32_t num_tokens;
  uint32_t num_samples;
  uint32_t num_groups;
  uint32_t max_runs;
  uint32_t padded_tokens;       /* not 0: attention runs over so many positions in every row */
  const int32_t* token_ids;     /* [num_tokens] */
  const int32_t* positions;     /* [num_tokens] */
  const uint32_t* slots;        /* [num_tokens] where the token's record is written, always */
  const uint32_t* mirrors;      /* [num_tokens] and here as well; NULL without KVRM_STEP_MIRRORED */
  const uint32_t* row_start;    /* [num_rows + 1] */
  const uint32_t* row_seq;      /* [num_rows] */
  const uint32_t* num_runs;     /* [bucket_rows] */
  const kvrm_extent* runs;      /* [bucket_rows * max_runs] */
  const uint32_t* sample_token; /* [num_samples] index into token_ids */
  const kvrm_group* groups;     /* [num_groups] */
} kvrm_step;

/* Blocks of the pool and bytes, exact, as of now; since start: num_moved_blocks to num_waits. */
typedef struct kvrm_stats {
  size_t struct_size;
  uint32_t num_blocks; /* sentinel excluded; free + held + cached + limbo */
  uint32_t num_free;
  uint32_t num_held;
  uint32_t num_cached;
  uint32_t num_limbo;
  uint32_t num_promised;
  uint32_t num_shared;
  uint32_t num_open;
  uint64_t reserved_bytes;
  uint64_t pool_bytes;
  uint64_t window_bytes;
  uint64_t mapped_bytes;
  uint64_t live_bytes;
  uint64_t fragmented_bytes;
  uint64_t table_bytes;
  uint64_t num_moved_blocks;
  uint64_t num_groups;
  uint64_t num_staged_bytes;
  uint64_t num_cow_blocks;
  uint64_t num_prefix_hits;
  uint64_t num_prefix_misses;
  uint64_t num_evictions;
  uint64_t num_waits;
  uint32_t num_host_blocks; /* of the host tier: free + held + limbo */
  uint32_t num_host_free;
  uint32_t num_host_held;
  uint32_t num_host_limbo;
  uint32_t num_parking;  /* sequences that are being copied out */
  uint32_t num_parked;   /* that lie there */
  uint32_t num_resuming; /* that are being copied back */
  uint32_t num_leaving;  /* blocks of the pool that those being copied out still hold */
  uint64_t host_reserved_bytes;
  uint64_t host_mapped_bytes;
  uint64_t host_live_bytes;
  uint64_t num_parks; /* since start, as what follows */
  uint64_t num_park_refusals;
  uint64_t num_resumes;
  uint64_t num_parked_blocks;  /* copied out */
  uint64_t num_resumed_blocks; /* copied back */
} kvrm_stats;

/* The name of a full block's content: kvrm_prefix_root, then one kvrm_prefix_next a block. */
typedef struct kvrm_key {
  uint8_t bytes[32];
} kvrm_key;

/* KVRM_API_VERSION of the library, to be compared with the header's. */
KVRM_API uint32_t kvrm_api_version(void);
/* "KVRM_FULL". Never NULL. */
KVRM_API const char* kvrm_status_name(kvrm_status status);

/* Sets every field: num_layers 1, block_tokens 16, max_runs 8, max_groups 32, ring_entries 2,
 * max_move_bytes_per_step 64 MiB, view "staged", placement "in-place"; sizes 0, to be filled in. */
KVRM_API void kvrm_options_init(kvrm_options* options, size_t struct_size);
/* KVRM_OK and a cache, or NULL in *cache and the reason in `message` (NULL: not wanted). */
KVRM_API kvrm_status kvrm_create(const kvrm_options* options, kvrm_cache** cache, char* message,
                                 size_t message_bytes);
/* Ends all sequences. Steps in flight must be done; NULL is fine. */
KVRM_API void kvrm_destroy(kvrm_cache* cache);
/* Why the last call was refused; "" after one that was not. Never NULL. */
KVRM_API const char* kvrm_message(const kvrm_cache* cache);

/* What the program reads and writes: the pool and, `window_offset` bytes behind, the windows;
 * without windows, window_offset == bytes. */
KVRM_API void* kvrm_memory(const kvrm_cache* cache, size_t* bytes, size_t* window_offset);
/* The two layer buffers of the view "staged-layers", one behind the other; else NULL. */
KVRM_API void* kvrm_layer_buffers(const kvrm_cache* cache, size_t* bytes);
KVRM_API uint64_t kvrm_block_bytes(const kvrm_cache* cache);
/* Fills the first stats->struct_size bytes. */
KVRM_API kvrm_status kvrm_get_stats(const kvrm_cache* cache, kvrm_stats* stats);
/* Tokens that kvrm_open would grant now. */
KVRM_API uint32_t kvrm_available_tokens(const kvrm_cache* cache);
/* 0 when not open. */
KVRM_API uint32_t kvrm_length(const kvrm_cache* cache, uint32_t seq);
KVRM_API uint32_t kvrm_target(const kvrm_cache* cache, uint32_t seq);

/* Starts an empty sequence with credit for reserve_tokens. KVRM_FULL when they are not there. */
KVRM_API kvrm_status kvrm_open(kvrm_cache* cache, uint32_t seq, uint32_t reserve_tokens);
/* What a sequence's tokens are called, for kvrm_open_cached and kvrm_publish. */
typedef struct kvrm_prefix {
  const int32_t* tokens;
  size_t num_tokens;
  const kvrm_key* keys; /* keys[i] names tokens [i * block_tokens, (i + 1) * block_tokens) */
  size_t num_keys;
} kvrm_prefix;
/* The same, and takes over the longest published prefix; *found_tokens is its length. */
KVRM_API kvrm_status kvrm_open_cached(kvrm_cache* cache, uint32_t seq, const kvrm_prefix* prefix,
                                      uint32_t reserve_tokens, uint32_t* found_tokens);
/* Starts `child` with the first num_tokens of `parent`, sharing their blocks. */
KVRM_API kvrm_status kvrm_fork(kvrm_cache* cache, uint32_t child, uint32_t parent,
                               uint32_t num_tokens, uint32_t reserve_tokens);
/* Raises the credit. */
KVRM_API kvrm_status kvrm_reserve(kvrm_cache* cache, uint32_t seq, uint32_t reserve_tokens);
/* Makes slots for tokens up to num_tokens in all. */
KVRM_API kvrm_status kvrm_extend(kvrm_cache* cache, uint32_t seq, uint32_t num_tokens);
/* Drops tokens from the end: num_tokens stay. */
KVRM_API kvrm_status kvrm_truncate(kvrm_cache* cache, uint32_t seq, uint32_t num_tokens);
/* Drops the whole blocks inside positions [from, to): a hole from now on. */
KVRM_API kvrm_status kvrm_trim(kvrm_cache* cache, uint32_t seq, uint32_t from, uint32_t to);
/* Ends the sequence, at any point. */
KVRM_API kvrm_status kvrm_release(kvrm_cache* cache, uint32_t seq);
/* Names the sequence's full blocks of retired steps, so that others can take them over. */
KVRM_API kvrm_status kvrm_publish(kvrm_cache* cache, uint32_t seq, const kvrm_prefix* prefix);

/* Ends the sequence, as kvrm_release does, and keeps what it has written: *parked names it from now
 * on. Slots beyond its length are given up. KVRM_FULL: the tier has no room for all of it.
 * KVRM_UNSUPPORTED: there is no tier. One that is coming back may be parked again; nothing is
 * copied then. */
KVRM_API kvrm_status kvrm_park(kvrm_cache* cache, uint32_t seq, uint32_t* parked);
/* KVRM_OK: kvrm_resume may have it. KVRM_WAIT: steps still have to copy it out. */
KVRM_API kvrm_status kvrm_check_parked(kvrm_cache* cache, uint32_t parked);
/* Starts `seq` with what was parked, and credit as kvrm_open. `prefix` (NULL: none) is as for
 * kvrm_open_cached, of what was parked: blocks that are still published are shared, not copied.
 * KVRM_WAIT as above, KVRM_FULL as kvrm_open. Until all of it is back: no kvrm_fork, kvrm_truncate
 * and kvrm_trim of it (KVRM_WAIT). Afterwards `parked` names nothing. */
KVRM_API kvrm_status kvrm_resume(kvrm_cache* cache, uint32_t parked, uint32_t seq,
                                 const kvrm_prefix* prefix, uint32_t reserve_tokens);
/* Gives up what is parked, or on its way there. */
KVRM_API kvrm_status kvrm_discard(kvrm_cache* cache, uint32_t parked);

KVRM_API kvrm_status kvrm_step_begin(kvrm_cache* cache);
KVRM_API kvrm_status kvrm_step_plan(kvrm_cache* cache);
/* Tokens [length, length + num_tokens) of `seq`, below its target. Logits are wanted of the last
 * num_samples of them. */
KVRM_API kvrm_status kvrm_step_add_row(kvrm_cache* cache, uint32_t seq, const int32_t* tokens,
                                       uint32_t num_tokens, uint32_t num_samples);
/* `bucket` is the program's number of the graph to run, bucket_rows its rows, padding included. */
KVRM_API kvrm_status kvrm_step_commit(kvrm_cache* cache, uint32_t bucket, uint32_t bucket_rows);
/* Gives up the step under construction. What was planned goes into the next one: commit one. */
KVRM_API kvrm_status kvrm_step_abandon(kvrm_cache* cache);
/* Fills the first step->struct_size bytes. KVRM_WAIT: nothing is committed that was not taken. */
KVRM_API kvrm_status kvrm_step_latch(kvrm_cache* cache, kvrm_step* step);
KVRM_API kvrm_status kvrm_step_land(kvrm_cache* cache);
/* The oldest latched step is done: *epoch (may be NULL) is its number. */
KVRM_API kvrm_status kvrm_step_retire(kvrm_cache* cache, uint64_t* epoch);

/* What tells apart models, and tenants; any bytes, none are fine. */
typedef struct kvrm_origin {
  const void* model;
  size_t model_bytes;
  const void* salt;
  size_t salt_bytes;
} kvrm_origin;
KVRM_API kvrm_status kvrm_prefix_root(kvrm_cache* cache, const kvrm_origin* origin, kvrm_key* root);
/* The key of a full block of tokens behind `parent`. */
KVRM_API void kvrm_prefix_next(const kvrm_key* parent, const int32_t* tokens, uint32_t num_tokens,
                               kvrm_key* key);

#ifdef __cplusplus
}
#endif

#endif /* KVRM_KVRM_H */
