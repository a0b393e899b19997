// SPDX-License-Identifier: Apache-2.0
// Matrix products with AVX-512 (VNNI for quantised weights).
//
// Every output element is one lane with one chain of sums in the order of the columns, whatever the
// number of tokens or groups that share a pass over the weights: blocking never changes a bit.
#include "kernels/avx512_lanes.h"
#include "kernels/avx512_passes.h"
#include "kernels/avx_matmul.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// kTokens tokens by one tile.
template <DType kType, uint32_t kTokens>
struct FloatTile {
  // That one load gives: BF16 lies in pairs.
  static constexpr uint32_t kColumns = kType == DType::kBf16 ? 2 : 1;

  const uint8_t* x[kTokens];
  __m512 sum[kTokens][kGroups];

  inline __attribute__((always_inline)) void Column(size_t k, const __m512* weights) {
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m512 value = _mm512_set1_ps(LoadAs<float>(x[t] + k * sizeof(float)));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_fmadd_ps(weights[g], value, sum[t][g]);
    }
  }

  // `w` is the column's, or the pair's, place in the tile.
  inline __attribute__((always_inline)) void Step(const uint8_t* w, size_t k, bool whole) {
    __m512 weights[kColumns][kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g) {
      if constexpr (kType == DType::kBf16) {
        const __m512i pair = _mm512_loadu_si512(w + 64 * g);
        weights[0][g] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        weights[1][g] = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(-65536)));
      } else {
        weights[0][g] = LoadFloats<kType>(w + g * kLanes * kElementBytes<kType>);
      }
    }
    Column(k, weights[0]);
    if constexpr (kColumns == 2) {
      if (whole) Column(k + 1, weights[1]);
    }
  }

  static void Run(const MatMulArgs& args, uint32_t token, uint32_t out, Columns columns) {
    constexpr size_t kStepBytes = size_t{kColumns} * kOutTile * kElementBytes<kType>;
    FloatTile tile;
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      tile.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        tile.sum[t][g] = _mm512_setzero_ps();
    }
    const uint8_t* w = Bytes(args.w.data) + out / kOutTile * OutTileBytes(kType, args.w.cols) +
                       columns.begin / kColumns * kStepBytes;
    size_t k = columns.begin;
    for (; k + kColumns <= columns.end; k += kColumns, w += kStepBytes) {
      KVRM_UNROLL
      for (size_t i = 0; i < kStepBytes; i += 64)
        __builtin_prefetch(w + kAhead + i);
      tile.Step(w, k, true);
    }
    if (k < columns.end) tile.Step(w, k, false);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        StoreOutputs(args, token + t, out + g * kLanes, tile.sum[t][g]);
    }
  }
};

template <DType kType>
void FloatColumns(const MatMulArgs& args, Columns columns) {
  for (uint32_t out = args.out_begin; out < args.out_end; out += kOutTile) {
    uint32_t t = 0;
    for (; args.num_tokens - t >= 8; t += 8)
      FloatTile<kType, 8>::Run(args, t, out, columns);
    for (; args.num_tokens - t >= 4; t += 4)
      FloatTile<kType, 4>::Run(args, t, out, columns);
    for (; args.num_tokens - t >= 2; t += 2)
      FloatTile<kType, 2>::Run(args, t, out, columns);
    if (t < args.num_tokens) FloatTile<kType, 1>::Run(args, t, out, columns);
  }
}

template <DType kType>
constexpr bool kHasMinimum = kType == DType::kQ4_K || kType == DType::kQ5_K;

template <DType kType>
constexpr uint32_t kQuantBytes = kType == DType::kQ8_0                            ? 512
                                 : kType == DType::kQ4_0 || kType == DType::kQ4_K ? 256
                                 : kType == DType::kQ6_K                          ? 384
                                                                                  : 320;

// What a sum over a block starts from (Q8Scale).
template <DType kType>
constexpr int kStart = kType == DType::kQ8_0   ? kStart128
                       : kType == DType::kQ4_0 ? kStart8
                       : kType == DType::kQ5_0 ? kStart16
                       : kType == DType::kQ6_K ? kStart32
                                               : kStart0;

// Parts of a block that have a scale each.
// Of the super of both groups.
template <DType kType>
constexpr uint32_t kSuperBytes = kHasMinimum<kType>      ? 128
                                 : kType == DType::kQ6_K ? 64
                                                         : 0;

template <DType kType>
constexpr int kParts = kType == DType::kQ6_K ? 2 : 1;

// Moves bit kFrom of every byte to bit kTo; other bits are garbage for the caller to mask.
template <int kFrom, int kTo>
__m512i MoveBit(__m512i x) {
  if constexpr (kFrom < kTo) return _mm512_slli_epi16(x, kTo - kFrom);
  if constexpr (kFrom > kTo) return _mm512_srli_epi16(x, kFrom - kTo);
  return x;
}

// Vector kV of a block: 4 columns of 16 rows, unsigned bytes.
template <DType kType, int kV>
__m512i LoadQuants(const uint8_t* quants) {
  if constexpr (kType == DType::kQ8_0) return _mm512_loadu_si512(quants + 64 * kV);
  const __m512i packed = _mm512_loadu_si512(quants + 64 * (kV % 4));
  constexpr int kNibble = kV < 4 ? 0 : 4;
  const __m512i low = _mm512_and_si512(MoveBit<kNibble, 0>(packed), _mm512_set1_epi8(15));
  // 0xf8: a | (b & c).
  if constexpr (kQuantBytes<kType> == 320) {
    const __m512i high = MoveBit<kV, 4>(_mm512_loadu_si512(quants + 256));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(16), 0xf8);
  }
  if constexpr (kQuantBytes<kType> == 384) {
    const __m512i high = MoveBit<2 * (kV % 4), 4>(_mm512_loadu_si512(quants + 256 + 64 * (kV / 4)));
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(48), 0xf8);
  }
  return low;
}

// Scales of 16 rows from bytes.
inline __m512 UnsignedScale(const uint8_t* p, __m512 d) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}

inline __m512 SignedScale(const uint8_t* p, __m512 d) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}

// Where what is fetched ahead goes, as __builtin_prefetch calls it. A single pass comes to it a few
// blocks later; what several passes fetch for the next stretch would push this one out of the
// nearest cache.
enum Cache : int { kSecond = 2, kNearest = 3 };

// A tile as it lies in memory.
template <DType kType>
struct Packed {
  static constexpr size_t kBlockBytes = kGroups * kQuantBytes<kType> + 64;

  const uint8_t* tile;

  Packed(const MatMulArgs& args, uint32_t out)
      : tile(Bytes(args.w.data) + out / kOutTile * OutTileBytes(kType, args.w.cols)) {}

  const uint8_t* Block(size_t b) const {
    return tile + b * kBlockBytes + (b / 8 + 1) * kSuperBytes<kType>;
  }
  const uint8_t* Super(size_t b, uint32_t g) const {
    return tile + b / 8 * (8 * kBlockBytes + kSuperBytes<kType>)+g * kSuperBytes<kType> / 2;
  }
  const uint8_t* Scales(size_t b, uint32_t g) const {
    return Block(b) + kGroups * kQuantBytes<kType> + 32 * g;
  }

  // Fetch into a cache what lies so many bytes after block b: its lines [begin, end), and what
  // belongs to all 8 blocks of a super where b is the first of them. HAZARD: GCC drops calls of a
  // function that only fetches ahead, for it has no effect that it knows of; so these are always
  // inlined.
  template <Cache kCache>
  inline __attribute__((always_inline)) void Fetch(size_t b, size_t distance, size_t begin,
                                                   size_t end) const {
    const uint8_t* ahead = Block(b) + distance;
    KVRM_UNROLL
    for (size_t i = begin; i < end; ++i)
      __builtin_prefetch(ahead + 64 * i, 0, kCache);
  }
  template <Cache kCache>
  inline __attribute__((always_inline)) void FetchSuper(size_t b, size_t distance) const {
    if (kSuperBytes<kType> == 0 || b % 8 != 0) return;
    KVRM_UNROLL
    for (size_t i = 64; i <= kSuperBytes<kType>; i += 64)
      __builtin_prefetch(Block(b) + distance - i, 0, kCache);
  }
  template <int kV>
  __m512i Quants(size_t b, uint32_t g) const {
    return LoadQuants<kType, kV>(Block(b) + g * kQuantBytes<kType>);
  }
  __m512 Scale(size_t b, uint32_t g, int part) const {
    if constexpr (kType == DType::kQ6_K) {
      return SignedScale(Scales(b, g) + 16 * part, LoadFloats<DType::kF16>(Super(b, g)));
    } else if constexpr (kHasMinimum<kType>) {
      return UnsignedScale(Scales(b, g), LoadFloats<DType::kF16>(Super(b, g)));
    } else {
      return LoadFloats<DType::kF16>(Scales(b, g));
    }
  }
  __m512 Minimum(size_t b, uint32_t g) const {
    return UnsignedScale(Scales(b, g) + 16, LoadFloats<DType::kF16>(Super(b, g) + 32));
  }
};

// Blocks of a stretch: at most 17 KB of 8-bit weights.
constexpr size_t kStretch = 16;

// A tile spelled out for many tokens: quants in bytes, scales in floats. A block of a group is 512
// bytes of quants, then 64 for each scale and for the minimum.
template <DType kType>
struct Panel {
  static constexpr size_t kScales = 512;
  static constexpr size_t kMinimum = kScales + 64 * kParts<kType>;
  static constexpr size_t kBlockBytes = kMinimum + (kHasMinimum<kType> ? 64 : 0);

  static_assert(kChunkTokens * kSumBytes + kStretch * kGroups * kBlockBytes <=
                kMatMulScratchBytes - kWorkerGapBytes);

  uint8_t* blocks;
  size_t begin;  // first block that it holds

  uint8_t* At(size_t b, uint32_t g) const {
    return blocks + ((b - begin) * kGroups + g) * kBlockBytes;
  }

  template <int kV>
  static inline __attribute__((always_inline)) void Unpack(const Packed<kType>& from, size_t b,
                                                           uint32_t g, uint8_t* to) {
    if constexpr (kV < 8) {
      _mm512_store_si512(to + 64 * kV, from.template Quants<kV>(b, g));
      Unpack<kV + 1>(from, b, g, to);
    }
  }
  void Fill(const Packed<kType>& from, size_t end) const {
    for (size_t b = begin; b < end; ++b) {
      for (uint32_t g = 0; g < kGroups; ++g) {
        uint8_t* to = At(b, g);
        Unpack<0>(from, b, g, to);
        for (int part = 0; part < kParts<kType>; ++part)
          _mm512_store_ps(to + kScales + 64 * part, from.Scale(b, g, part));
        if constexpr (kHasMinimum<kType>) _mm512_store_ps(to + kMinimum, from.Minimum(b, g));
      }
    }
  }

  template <int kV>
  __m512i Quants(size_t b, uint32_t g) const {
    return _mm512_load_si512(At(b, g) + 64 * kV);
  }
  __m512 Scale(size_t b, uint32_t g, int part) const {
    return _mm512_load_ps(At(b, g) + kScales + 64 * part);
  }
  __m512 Minimum(size_t b, uint32_t g) const { return _mm512_load_ps(At(b, g) + kMinimum); }
};

// kTokens tokens by one tile, from `source`, Packed or Panel. A single pass fetches what it comes
// to a little later, and does so between its products, a few lines at a time: all lines of a block
// at once fill the queue of misses (16 lines on some processors), and arithmetic waits with memory.
template <DType kType, typename Source, uint32_t kTokens, bool kSingle>
struct QuantTile {
  static constexpr size_t kLines = Packed<kType>::kBlockBytes / 64;
  // Between the products of a block; not where unpacking and scales leave gaps enough anyway, nor
  // where the products of one token take less time than the bytes.
  static constexpr bool kBetween =
      kSuperBytes<kType> == 0 && !(kType == DType::kQ8_0 && kTokens == 1);
  // 8 tokens of fewer bits multiply for longer than they read, and want the nearest cache's lines
  // for their activations: on a Zen 5 Q4_0 takes 23 instead of 24.5 ms a step.
  static constexpr Cache kCache = kTokens < 8 || kType == DType::kQ8_0 ? kNearest : kSecond;

  const Source& source;
  const Packed<kType>& packed;
  size_t ahead;  // Pass::distance
  const uint8_t* x[kTokens];
  size_t act_scales;  // bytes from a row of activations to its Q8Scale[]
  __m512 sum[kTokens][kGroups];

  // dot += vectors kV .. kEnd - 1 of the block times the activations, exactly.
  template <int kV, int kEnd>
  inline __attribute__((always_inline)) void Dot(size_t b, __m512i (*dot)[kGroups]) const {
    if constexpr (kV < kEnd) {
      if constexpr (kSingle && kBetween)
        packed.template Fetch<kCache>(b, ahead, kV * kLines / 8, (kV + 1) * kLines / 8);
      __m512i weights[kGroups];
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        weights[g] = source.template Quants<kV>(b, g);
      KVRM_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t) {
        const __m512i value = _mm512_set1_epi32(LoadAs<int32_t>(x[t] + b * kBlock + 4 * kV));
        KVRM_UNROLL
        for (uint32_t g = 0; g < kGroups; ++g)
          dot[t][g] = _mm512_dpbusd_epi32(dot[t][g], weights[g], value);
      }
      Dot<kV + 1, kEnd>(b, dot);
    }
  }

  // Part kPart of block b.
  template <int kPart>
  inline __attribute__((always_inline)) void Part(size_t b) {
    constexpr int kVectors = 8 / kParts<kType>;
    const size_t act = act_scales + b * sizeof(Q8Scale);
    __m512i dot[kTokens][kGroups];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m512i from = _mm512_set1_epi32(SumStart<kStart<kType>, kPart>(x[t] + act));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        dot[t][g] = from;
    }
    Dot<kPart * kVectors, (kPart + 1) * kVectors>(b, dot);
    __m512 scale[kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      scale[g] = source.Scale(b, g, kPart);
    if constexpr (kStart<kType> == kStart32) {
      AddConverted(act, dot, scale);
    } else {
      AddScaled(act, dot, scale);
    }
  }

  // sum += dot * act * scale, of sums without kQ8MagicBits.
  inline __attribute__((always_inline)) void AddConverted(size_t act, __m512i (*dot)[kGroups],
                                                          const __m512* scale) {
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m512 act_scale = _mm512_set1_ps(LoadAs<float>(x[t] + act));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][g]),
                                    _mm512_mul_ps(scale[g], act_scale), sum[t][g]);
    }
  }

  // The same of sums with them. All products come before the sums: interleaved, the compiler keeps
  // fewer of the sums in registers.
  inline __attribute__((always_inline)) void AddScaled(size_t act, __m512i (*dot)[kGroups],
                                                       const __m512* scale) {
    __m512 product[kTokens][kGroups];
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m512 act_scale = _mm512_set1_ps(LoadAs<float>(x[t] + act));
      const __m512 magic_scale =
          _mm512_set1_ps(LoadAs<float>(x[t] + act + offsetof(Q8Scale, magic_scale)));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        product[t][g] = _mm512_fmsub_ps(_mm512_castsi512_ps(dot[t][g]), act_scale, magic_scale);
    }
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_fmadd_ps(product[t][g], scale[g], sum[t][g]);
    }
  }

  inline __attribute__((always_inline)) void Minimum(size_t b) {
    __m512 minimum[kGroups];
    KVRM_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g)
      minimum[g] = source.Minimum(b, g);
    const size_t act = act_scales + b * sizeof(Q8Scale) + offsetof(Q8Scale, sum_scale);
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t) {
      const __m512 act_sum = _mm512_set1_ps(LoadAs<float>(x[t] + act));
      KVRM_UNROLL
      for (uint32_t g = 0; g < kGroups; ++g)
        sum[t][g] = _mm512_fnmadd_ps(minimum[g], act_sum, sum[t][g]);
    }
  }

  static void Run(const MatMulArgs& args, const Source& source, const Packed<kType>& packed,
                  uint32_t token, const Pass& pass) {
    QuantTile tile = {source, packed, pass.distance, {}, (size_t{args.w.cols} + 63) / 64 * 64, {}};
    KVRM_UNROLL
    for (uint32_t t = 0; t < kTokens; ++t)
      tile.x[t] = Bytes(args.x) + (token + t) * args.x_stride;
    LoadSums<kTokens>(args, token, pass, tile.sum);
    const size_t fetch_begin = kLines * pass.index / pass.num_passes;
    const size_t fetch_end = kLines * (pass.index + 1) / pass.num_passes;
    for (size_t b = pass.begin; b < pass.end; ++b) {
      if constexpr (kSingle) {
        packed.template FetchSuper<kCache>(b, pass.distance);
        if constexpr (!kBetween) packed.template Fetch<kCache>(b, pass.distance, 0, kLines);
      } else {
        packed.template Fetch<kSecond>(b, pass.distance, fetch_begin, fetch_end);
        if (pass.index == 0) packed.template FetchSuper<kSecond>(b, pass.distance);
      }
      tile.template Part<0>(b);
      if constexpr (kParts<kType> == 2) tile.template Part<1>(b);
      if constexpr (kHasMinimum<kType>) tile.Minimum(b);
    }
    StoreSums<kTokens>(args, token, pass, tile.sum);
  }
};

template <DType kType, typename Source, uint32_t kTokens>
inline __attribute__((always_inline)) uint32_t QuantTokens(const MatMulArgs& args,
                                                           const Source& source,
                                                           const Packed<kType>& packed, uint32_t t,
                                                           Pass* pass) {
  for (; args.num_tokens - t >= kTokens; t += kTokens) {
    QuantTile<kType, Source, kTokens, false>::Run(args, source, packed, t, *pass);
    ++pass->index;
  }
  return t;
}

// From so many tokens on, spelling a tile out costs less than unpacking it for every 8 of them.
template <DType kType>
constexpr uint32_t kPanelTokens = kType == DType::kQ8_0 ? ~0u : 32;

template <DType kType>
void QuantStretch(const MatMulArgs& args, Pass pass) {
  using File = Packed<kType>;
  const File packed(args, pass.out);
  uint32_t t = 0;
  if (args.num_tokens >= kPanelTokens<kType>) {
    const Panel<kType> panel = {static_cast<uint8_t*>(args.scratch) + kChunkTokens * kSumBytes,
                                pass.begin};
    panel.Fill(packed, pass.end);
    t = QuantTokens<kType, Panel<kType>, 8>(args, panel, packed, t, &pass);
  } else {
    t = QuantTokens<kType, File, 8>(args, packed, packed, t, &pass);
  }
  t = QuantTokens<kType, File, 4>(args, packed, packed, t, &pass);
  t = QuantTokens<kType, File, 2>(args, packed, packed, t, &pass);
  QuantTokens<kType, File, 1>(args, packed, packed, t, &pass);
}

// How far ahead a single pass fetches. One token of a small block is so fast that a Zen 4's own
// fetches keep up, and are put off their stride by what lies further: 0.69 of the read rate with
// 6 KiB, 0.90 with 1 KiB. One of bytes wants 4 KiB there: 0.79 instead of 0.68. A Zen 5, which
// alone of AMD's has AVX512_VP2INTERSECT, is best left alone with both: bytes come 1.27 times as
// fast as with 4 to 6 KiB, nibbles no slower than with the best distance.
template <DType kType>
size_t SingleAhead(uint32_t num_tokens) {
  if (num_tokens != 1) return kAhead;
  const bool is_bytes = kType == DType::kQ8_0;
  if (!is_bytes && kType != DType::kQ4_0) return kAhead;
  if (__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512vp2intersect")) return 0;
  if (is_bytes) return 4096;
  return __builtin_cpu_is("amd") ? 1024 : kAhead;
}

// All blocks of a tile in one pass of 8, 4, 2 or 1 tokens.
template <DType kType>
void QuantSingle(const MatMulArgs& args, const Pass& pass) {
  const Packed<kType> packed(args, pass.out);
  switch (args.num_tokens) {
    case 8:
      return QuantTile<kType, Packed<kType>, 8, true>::Run(args, packed, packed, 0, pass);
    case 4:
      return QuantTile<kType, Packed<kType>, 4, true>::Run(args, packed, packed, 0, pass);
    case 2:
      return QuantTile<kType, Packed<kType>, 2, true>::Run(args, packed, packed, 0, pass);
    default:
      return QuantTile<kType, Packed<kType>, 1, true>::Run(args, packed, packed, 0, pass);
  }
}

// Requires: no more than kChunkTokens tokens.
template <DType kType>
void QuantColumns(const MatMulArgs& args, Columns columns) {
  const size_t begin = columns.begin / kBlock;
  const size_t end = columns.end / kBlock;
  if (NumPasses(args.num_tokens) == 1) {
    const size_t ahead = SingleAhead<kType>(args.num_tokens);
    for (uint32_t out = args.out_begin; out < args.out_end; out += kOutTile)
      QuantSingle<kType>(args, {begin, end, out, true, true, ahead, 1, 0});
    return;
  }
  ForStretches(args, begin, end, kStretch, kBlock,
               [&](const Pass& pass) { QuantStretch<kType>(args, pass); });
}

struct AllTokens {
  template <DType kType>
  static void Run(const MatMulArgs& args, Columns columns) {
    if constexpr (kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBf16) {
      return FloatColumns<kType>(args, columns);
    } else {
      ForChunks(args, [&](const MatMulArgs& chunk) { QuantColumns<kType>(chunk, columns); });
    }
  }
};

}  // namespace

void Avx512MatMul(const MatMulArgs& args) {
  MatMulOfType<AllTokens>(args);
}

}  // namespace kvrm
