// SPDX-License-Identifier: Apache-2.0
// The table of CPU kernels: one struct of function pointers per instruction set.
//
// scalar.cc fills every entry in the plainest correct C++ and is the specification. avx2.cc and
// avx512.cc fill what they improve; what they leave empty comes from the next lesser table
// (select.cc). reference.cc is the float32 model: dequantised weights, float32 activations.
//
// A table's act entries all write the one layout described at ActFormat, bit for bit alike, so that
// a MatKernel may be inherited without its ActKernel.
//
// Batch invariance: the value of one output element depends on that element's own row of
// activations and its own weights only, never on num_tokens, on the partition of outputs or on the
// number of workers. Every sum over `cols` has one fixed order per table.
//
// Threading: kernels are pure functions; callers give disjoint outputs to different workers.
//
// HAZARD: this header is compiled under instruction-set flags. Plain structs and declarations only:
// nothing that can emit an inline function or a template (docs/decisions/0008).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "step/dtype.h"

namespace kvrm {

// Formats a row of activations can be prepared in, once per operand, before a matrix product.
enum class ActFormat : uint8_t {
  kF32,   // float[cols], as it is
  kBf16,  // uint16_t[cols], rounded to bfloat16
  kQ8,    // int8_t[cols] padded to a multiple of 64, then Q8Scale[cols / 32]
};
inline constexpr int kNumActFormats = 3;

// The bits of kQ8Magic + n are kQ8MagicBits + n for |n| < 2^22: a sum of products that starts from
// kQ8MagicBits is a float when it is done, and one operation takes kQ8Magic off and scales,
//   (kQ8Magic + n) * scale - magic_scale = n * scale,
// rounded once, for scale has 22 bits and magic_scale is exact. Sums over a block of 32, on their
// way too, stay below 32 * (128 + 255) * 127 < 2^21.
inline constexpr float kQ8Magic = 0x1.8p23f;
inline constexpr int32_t kQ8MagicBits = 0x4b400000;

// x[i] ~ scale * q[i], |q[i]| <= 127, for a block of 32. A block with an Inf, a NaN or a magnitude
// of 2^110 or more has q = 0 and a NaN scale, so that it shows in every output.
struct Q8Scale {
  float scale;        // max |x| / 127, in 22 bits
  float sum_scale;    // scale * (sum of q), for weights with a minimum
  float magic_scale;  // scale * kQ8Magic
  // Weights are multiplied unsigned, too large by their zero point: a sum over the block starts
  // from kQ8MagicBits - zero * (sum of q), by zero points. Those of 32 are two, of q[0, 16) and
  // q[16, 32), without kQ8MagicBits: with two sums a block the conversion is the faster way.
  int32_t start[5];
};
// Indices of Q8Scale::start.
inline constexpr int kStart128 = 0;
inline constexpr int kStart8 = 1;
inline constexpr int kStart16 = 2;
inline constexpr int kStart32 = 3;  // and 4
inline constexpr int kStart0 = -1;  // no zero point: kQ8MagicBits

// A weight matrix in the layout its kernel wants. y = x W^T + b.
struct PackedMatrix {
  const void*
      data;       // What MatKernel::pack wrote, or the file's own bytes where packed_bytes is null.
  uint32_t rows;  // Output features.
  uint32_t cols;  // Input features.
  DType type;
};

// What is each worker's own lies so far apart at least. Processors fetch what may follow what a
// worker writes, and where that is another's, lines travel between cores: with 3 KB between their
// scratch, 32 rows of Q4_K took a third longer on two cores (Zen 4), with 12 KB no longer.
inline constexpr uint32_t kWorkerGapBytes = 16 * 1024;

// Of one worker, the gap included.
inline constexpr uint32_t kMatMulScratchBytes = 32 * 1024 + kWorkerGapBytes;

struct MatMulArgs {
  PackedMatrix w;
  const void* x;      // [num_tokens] rows in the kernel's ActFormat
  size_t x_stride;    // bytes between rows
  float* y;           // [num_tokens][y_stride]; element (t, o) is y[t * y_stride + o]
  size_t y_stride;    // floats between rows
  const float* bias;  // [w.rows] or null
  uint32_t num_tokens;
  uint32_t out_begin;  // Output features [out_begin, out_end); out_begin is a multiple of kOutTile.
  uint32_t out_end;
  bool accumulate;  // y += instead of y =
  void* scratch =
      nullptr;  // MatKernel::scratch_bytes(w.cols), 64-byte aligned, of this worker alone
};

// Partitions of output features are multiples of this, so that packed layouts may interleave rows.
inline constexpr uint32_t kOutTile = 32;

// Everything about one weight type, taken as a whole from one table: layouts differ between tables.
struct MatKernel {
  ActFormat act;
  // Bytes of the packed form. Null (with pack): the file's layout is used in place and nothing is
  // copied.
  uint64_t (*packed_bytes)(uint32_t rows, uint32_t cols);
  // Packs rows [row_begin, row_end) (multiples of kOutTile, or the end) from the file's layout.
  // `source` is row 0 of the file's tensor and needs no alignment; `target` is 64-byte aligned.
  void (*pack)(void* target, const void* source, uint32_t rows, uint32_t cols, uint32_t row_begin,
               uint32_t row_end);
  void (*matmul)(const MatMulArgs& args);
  // Dequantises one row of the packed form (embedding lookup): target[cols].
  void (*row)(const PackedMatrix& w, uint32_t row, float* target);
};

struct ActKernel {
  // Bytes of one prepared row of `cols` floats, a multiple of 64.
  uint64_t (*bytes)(uint32_t cols);
  // Prepares columns [begin, end) of a row of `cols`; any division of a row gives the same bytes.
  // Requires: begin and, unless it is cols, end are multiples of 32; cols is for kQ8.
  void (*prepare)(const float* x, void* target, uint32_t cols, uint32_t begin, uint32_t end);
};

enum class RopeStyle : uint8_t {
  kInterleaved,  // pairs (2i, 2i + 1): GGUF files of the llama architecture
  kHalves,       // pairs (i, i + dim / 2): "NeoX"; Qwen, and Hugging Face folders
};

struct RopeArgs {
  float* x;             // [num_heads][head_dim], rotated in place
  const float* cosine;  // [rope_dim / 2] for this position
  const float* sine;
  uint32_t num_heads;
  uint32_t head_dim;
  uint32_t rope_dim;  // <= head_dim; the rest is left alone
  RopeStyle style;
};

// One token's K or V for all kv heads of one layer into its slot.
struct StoreKvArgs {
  const float* k;  // [num_kv_heads][head_dim]
  const float* v;
  uint8_t* k_tile;  // head 0's K tile of this token (layout.h)
  uint8_t* v_tile;
  size_t head_bytes;  // between heads, K and V alike
  uint32_t lane;      // token within its tile, [0, 16)
  uint32_t num_kv_heads;
  uint32_t head_dim;
  DType dtype;  // kF32, kF16, kBf16; kQ8_0 where head_dim is a multiple of 32
};

struct AttentionRun {
  const uint8_t* base;  // first block of the run; null: a hole, whose positions are not attended
  uint32_t num_blocks;
};

// All query heads of one kv head, for one token. Positions [begin, end) are attended, over the runs
// in token order (run 0 starts at position 0); without any position in them that is not in a hole,
// `out` is NaN. Softmax in units of kAttentionUnit absolute positions, merged in their order, so
// the result does not depend on how the history is cut into runs or chunks, nor on who computed
// which unit (docs/decisions/0012).
// head_dim is any even number up to 512: there are models with 8, so tails are real.
//
// Tokens of one row at consecutive positions may share the pass over K and V, in tables with
// CpuKernels::attention_heads. Their positions lie in one unit and in no hole, and `begin` is the
// same for all. The result of each is to the bit what it is alone.
struct AttentionArgs {
  const float* q;  // [group][head_dim], not yet scaled
  float* out;      // [group][head_dim]
  const AttentionRun* runs;
  float* scratch;  // AttentionScratchFloats(group, head_dim), 64-byte aligned
  size_t block_bytes;
  size_t k_offset;  // bytes from a block's start to this (layer, kv head)'s first K tile
  size_t v_offset;
  uint32_t num_runs;
  uint32_t group;  // query heads per kv head
  uint32_t head_dim;
  uint32_t block_tokens;
  uint32_t begin;  // first attended position (sliding window), usually 0
  uint32_t end;    // the (last) token's position + 1
  float scale;     // 1 / sqrt(head_dim) as a rule
  DType dtype;
  uint32_t num_tokens = 1;  // at positions [end - num_tokens, end)
  size_t q_stride = 0;      // floats from token to token
  size_t out_stride = 0;
  // What will be attended next, or null: its first tiles are asked for and never read.
  const AttentionArgs* following = nullptr;
};
inline constexpr uint32_t kAttentionUnit = 512;

// The tiles of one attention unit in order of position. Tiles lie in holes as a whole, and a tile
// without an attended lane is not among them; all lanes of the others are attended, but for those
// before first_lane of the first and from end_lane of the last.
inline constexpr uint32_t kUnitTiles = kAttentionUnit / 16;
// Tiles that a kernel asks for ahead of the one it works on: 32 KiB of F16 at head size 64, which
// go to the second-level cache.
inline constexpr uint32_t kTilesAhead = 16;
// Tiles that it asks for between K and V, where it computes without reading.
inline constexpr uint32_t kTilesBetween = 8;
struct AttentionUnit {
  uint32_t num_tiles;  // at least 1
  uint32_t first_lane;
  uint32_t end_lane;
  bool is_last;  // token t does not attend the last num_tokens - 1 - t lanes
  // Beyond num_tiles come some that repeat the last tile, so that it may be read and the outcome
  // ignored: up to a multiple of 4 and 4 more.
  const uint8_t* k[kUnitTiles + 4];
  const uint8_t* v[kUnitTiles + 4];
  // Where reading goes on behind tile i of K (num_tiles of them), then of V: for prefetching, and
  // never for reading.
  const uint8_t* ahead[2 * kUnitTiles];
  // The tiles after those that were asked for with the last tile of K.
  const uint8_t* between[kTilesBetween];
};

using AttentionUnitKernel = void (*)(const AttentionArgs& args, const AttentionUnit& unit,
                                     float* partial);

// Logits are taken in chunks of fixed size, so that no number depends on who computes it.
inline constexpr uint32_t kLogitChunk = 128;

struct LogitSelection {
  const float* x;
  uint32_t begin;  // ids [begin, end) are looked at
  uint32_t end;
  float low;  // low <= x[id] < high
  float high;
};

struct CpuKernels {
  const char* name;               // "scalar", "avx2", "avx512", "avx512_bf16", "reference"
  MatKernel mat[kNumDTypes];      // by DType
  ActKernel act[kNumActFormats];  // by ActFormat
  // y[i] = x[i] * w[i] / sqrt(mean(x^2) + eps), i in [0, n)
  void (*rms_norm)(const float* x, const float* w, float eps, float* y, uint32_t n);
  void (*rope)(const RopeArgs& args);
  void (*store_kv)(const StoreKvArgs& args);
  void (*attention)(const AttentionArgs& args);  // AttendWhole of the next one
  // Attention over the positions of one unit alone, whatever args.begin and end say, written as a
  // partial result (AttentionPartialFloats). args.out is not touched.
  AttentionUnitKernel attention_unit;
  // The most that group * num_tokens may be where num_tokens is not 1; 0: it must be 1.
  uint32_t attention_heads;
  // y[i] = silu(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, float* y, uint32_t n);
  // y[i] = e^x[i], relative error below 2e-7 where the result is a normal number
  void (*exp)(const float* x, float* y, uint32_t n);
  // Of every chunk of x[0, n): the greatest, and the sum of e^(x - greatest). A chunk with an Inf
  // or NaN has a NaN sum, and any maximum.
  void (*logit_stats)(const float* x, uint32_t n, float* maxima, float* sums);
  // Of every chunk, the sum of e^((x - greatest) * scale). Requires: x finite, x <= greatest,
  // 0 < scale < Inf.
  void (*logit_weights)(const float* x, uint32_t n, float greatest, float scale, float* sums);
  // Writes the ids that pass, ascending, returns how many.
  uint32_t (*select)(const LogitSelection& selection, uint32_t* ids);
};

// Below, `group` is AttentionArgs::group * num_tokens, token by token.
//
// A partial result: [group][head_dim] weighted sums of values, then [group] greatest scores, then
// [group] sums of weights, relative to the greatest score. Its size is a multiple of 16 floats.
size_t AttentionPartialFloats(uint32_t group, uint32_t head_dim);
size_t AttentionScratchFloats(uint32_t group, uint32_t head_dim);
// Of the units that [args.begin, args.end) touches, those with index in [begin, end), each to its
// place in `partials`: unit `begin` first. A unit without attended positions is left empty.
void AttendUnits(AttentionUnitKernel kernel, const AttentionArgs& args, uint32_t begin,
                 uint32_t end, float* partials);
// Merges partial results in their order and writes args.out.
void MergeUnits(const AttentionArgs& args, const float* partials, uint32_t num_partials);
// To the bit AttendUnits of all units and MergeUnits, without the memory for the former.
void AttendWhole(AttentionUnitKernel kernel, const AttentionArgs& args);
// The part of args.scratch that kernels may use: [group][kAttentionUnit + head_dim] floats.
float* AttentionKernelScratch(const AttentionArgs& args);

// The layout the vector tables share: rows in tiles of 32, two groups of 16, interleaved so that
// one load meets 16 or 8 output elements and no sum is ever taken across lanes. A pass reads a
// tile, and a matrix, from front to back: one stream, which is what memory gives its full rate to.
// The last tile is padded with zeros.
//
//   F32, F16    tile -> column -> row: [rows / 32][cols][32]
//   BF16        tile -> pair of columns -> row -> column: [rows / 32][cols / 2][32][2], so that a
//               32-bit lane holds two columns of a row
//   quantised   tile -> [cols / 256] (super, then 8 blocks), or blocks alone for the types without
//     block     32 columns: quants of group 0, quants of group 1, scales of both, 32 bytes each
//     quants    a vector is 64 bytes: 4 consecutive columns of each of the 16 rows, unsigned; a
//               group's 32 columns are 8 such vectors, v0 .. v7
//       8 bits   v0 .. v7                                                        512 bytes
//       4 bits   byte-wise v0 | v4 << 4, v1 | v5 << 4, v2 | v6 << 4, v3 | v7 << 4   256
//       5 bits   the low nibbles as above, then one vector with bit 4 of v[i] in bit i   320
//       6 bits   the low nibbles, then two vectors with bits 4-5 of v[i] in bits 2 (i % 4), the
//                first for v0 .. v3, the second for v4 .. v7                        384
//     scales    f16[16] d; for Q4_K and Q5_K uint8[16] scale, uint8[16] min; for Q6_K int8[16] of
//               the first 16 columns, int8[16] of the others
//     super     for each group f16[16] d, and for Q4_K and Q5_K f16[16] dmin after it
//
// Every number of the file is kept exactly; the size is the file's, plus 2.8 % for Q4_K and 2.3 %
// for Q5_K, whose scales take a byte here. A tile and a block start at a multiple of 64 bytes.
//
// The templates are only declared here and instantiated in tiled.cc, for all types.
uint64_t OutTileBytes(DType type, uint32_t cols);
template <DType kType>
uint64_t TiledBytes(uint32_t rows, uint32_t cols);
template <DType kType>
void TiledPack(void* target, const void* source, uint32_t rows, uint32_t cols, uint32_t row_begin,
               uint32_t row_end);
template <DType kType>
void TiledRow(const PackedMatrix& w, uint32_t row, float* target);

// The tables as compiled; entries may be null (inherit) except in scalar. Reference inherits too.
extern const CpuKernels kScalarKernels;
extern const CpuKernels kReferenceKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx512Bf16Kernels;

// The best table this processor runs, chosen once; KVRM_ISA=scalar|avx2|avx512|avx512_bf16
// forces another: avx512_bf16 is the best only where its instruction is the faster one.
// An unknown or unsupported name throws StartError. Every entry is filled.
const CpuKernels& SelectCpuKernels();
// By name, for tests and --reference; null when this processor cannot run it.
const CpuKernels* FindCpuKernels(const char* name);

}  // namespace kvrm
