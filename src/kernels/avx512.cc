// SPDX-License-Identifier: Apache-2.0
// The table of AVX-512 kernels, and the kernels over single rows. Compiled, as are the other
// avx512_*.cc, with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c; the
// hazard of that is in avx512_lanes.h.
#include "kernels/avx512_lanes.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

uint64_t BytesQ8(uint32_t cols) {
  const uint64_t scales = cols / kBlock * sizeof(Q8Scale);
  return (uint64_t{cols} + 63) / 64 * 64 + (scales + 63) / 64 * 64;
}

void PrepareQ8(const float* x, void* target, uint32_t cols, uint32_t begin, uint32_t end) {
  auto* q = static_cast<int8_t*>(target);
  uint8_t* scales = static_cast<uint8_t*>(target) + (size_t{cols} + 63) / 64 * 64;
  for (size_t b = begin / kBlock; b < end / kBlock; ++b) {
    const Q8Scale scale = QuantizeBlock(x + b * kBlock, q + b * kBlock);
    __builtin_memcpy(scales + b * sizeof(scale), &scale, sizeof(scale));
  }
}

uint64_t BytesBf16(uint32_t cols) {
  return (uint64_t{cols} * sizeof(uint16_t) + 63) / 64 * 64;
}

void PrepareBf16(const float* x, void* target, uint32_t /*cols*/, uint32_t begin, uint32_t end) {
  auto* bits = static_cast<uint16_t*>(target);
  for (size_t i = begin; i < end; i += kLanes) {
    const __mmask16 mask = TailMask(end - static_cast<uint32_t>(i));
    _mm256_mask_storeu_epi16(bits + i, mask,
                             NarrowFloats<DType::kBf16>(_mm512_maskz_loadu_ps(mask, x + i)));
  }
}

// K is a column of its tile, V a row.
template <DType kType>
void StoreKvType(const StoreKvArgs& args) {
  constexpr size_t kBytes = kElementBytes<kType>;
  for (uint32_t h = 0; h < args.num_kv_heads; ++h) {
    const float* k = args.k + size_t{h} * args.head_dim;
    const float* v = args.v + size_t{h} * args.head_dim;
    uint8_t* k_target = args.k_tile + h * args.head_bytes + args.lane * kBytes;
    uint8_t* v_target = args.v_tile + h * args.head_bytes + args.lane * args.head_dim * kBytes;
    for (size_t d = 0; d < args.head_dim; d += kLanes) {
      const uint32_t left = args.head_dim - static_cast<uint32_t>(d);
      const __mmask16 mask = TailMask(left);
      const __m512 keys = _mm512_maskz_loadu_ps(mask, k + d);
      const __m512 values = _mm512_maskz_loadu_ps(mask, v + d);
      alignas(64) uint8_t column[kLanes * 4];
      if constexpr (kType == DType::kF32) {
        _mm512_store_ps(column, keys);
        _mm512_mask_storeu_ps(v_target + d * kBytes, mask, values);
      } else {
        _mm256_store_si256(reinterpret_cast<__m256i*>(column), NarrowFloats<kType>(keys));
        _mm256_mask_storeu_epi16(v_target + d * kBytes, mask, NarrowFloats<kType>(values));
      }
      const uint32_t lanes = left < kLanes ? left : kLanes;
      for (size_t i = 0; i < lanes; ++i)
        __builtin_memcpy(k_target + (d + i) * kLanes * kBytes, column + i * kBytes, kBytes);
    }
  }
}

// 32 values of a token; as in scalar.cc. Returns the scale's bits.
uint16_t QuantizeKv(const float* x, int8_t* q) {
  const __m512 x0 = _mm512_loadu_ps(x);
  const __m512 x1 = _mm512_loadu_ps(x + kLanes);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const uint32_t greatest = _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
  float amax;
  __builtin_memcpy(&amax, &greatest, sizeof(amax));
  const bool usable = greatest < 0x7f800000u && amax >= 0x1p-100f;
  const float wanted = amax / 127.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &wanted, sizeof(bits));
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  float scale;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  const __mmask16 mask = TailMask(usable ? kLanes : 0);
  const __m512 inverse = _mm512_set1_ps(usable ? 1.0f / scale : 0.0f);
  const __m512i q0 = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x0, inverse));
  const __m512i q1 = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(x1, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(q0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + kLanes), _mm512_cvtepi32_epi8(q1));
  if (greatest >= 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>(usable ? bits >> 16 : 0);
}

void StoreKvQ8(const StoreKvArgs& args) {
  for (uint32_t h = 0; h < args.num_kv_heads; ++h) {
    uint8_t* k_tile = args.k_tile + h * args.head_bytes;
    uint8_t* v_tile = args.v_tile + h * args.head_bytes;
    for (size_t d = 0; d < args.head_dim; d += kBlock) {
      const size_t source = size_t{h} * args.head_dim + d;
      const size_t scale_at = (size_t{args.head_dim} + d / kBlock * 2) * kLanes + 2 * args.lane;
      alignas(32) int8_t q[kBlock];
      const uint16_t k_scale = QuantizeKv(args.k + source, q);
      __builtin_memcpy(k_tile + scale_at, &k_scale, sizeof(k_scale));
      const __m256i bytes = _mm256_xor_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(q)),
                                             _mm256_set1_epi8(-128));
      alignas(32) uint8_t keys[kBlock];
      _mm256_store_si256(reinterpret_cast<__m256i*>(keys), bytes);
      for (size_t i = 0; i < kBlock; i += 4)
        __builtin_memcpy(k_tile + (d + i) * kLanes + 4 * args.lane, keys + i, 4);
      const uint16_t v_scale = QuantizeKv(args.v + source, q);
      __builtin_memcpy(v_tile + scale_at, &v_scale, sizeof(v_scale));
      uint8_t* values = v_tile + (args.lane / 4 * size_t{args.head_dim} + d) * 4 + args.lane % 4;
      for (size_t i = 0; i < kBlock; ++i)
        values[4 * i] = static_cast<uint8_t>(q[i]);
    }
  }
}

void StoreKv(const StoreKvArgs& args) {
  switch (args.dtype) {
    case DType::kF32:
      return StoreKvType<DType::kF32>(args);
    case DType::kF16:
      return StoreKvType<DType::kF16>(args);
    case DType::kQ8_0:
      return StoreKvQ8(args);
    default:
      return StoreKvType<DType::kBf16>(args);
  }
}

void RmsNorm(const float* x, const float* w, float eps, float* y, uint32_t n) {
  const uint32_t whole = n / kLanes * kLanes;
  const __mmask16 rest = TailMask(n - whole);
  __m512 squares = _mm512_setzero_ps();
  for (size_t i = 0; i < whole; i += kLanes) {
    const __m512 values = _mm512_loadu_ps(x + i);
    squares = _mm512_fmadd_ps(values, values, squares);
  }
  const __m512 last = _mm512_maskz_loadu_ps(rest, x + whole);
  squares = _mm512_fmadd_ps(last, last, squares);
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(n);
  const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < whole; i += kLanes) {
    const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
    _mm512_storeu_ps(y + i, _mm512_mul_ps(values, _mm512_loadu_ps(w + i)));
  }
  const __m512 scaled = _mm512_mul_ps(last, scale);
  _mm512_mask_storeu_ps(y + whole, rest,
                        _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(rest, w + whole)));
}

void RopeHalves(const RopeArgs& args, float* x) {
  const uint32_t half = args.rope_dim / 2;
  for (uint32_t i = 0; i < half; i += kLanes) {
    const __mmask16 mask = TailMask(half - i);
    const __m512 cosine = _mm512_maskz_loadu_ps(mask, args.cosine + i);
    const __m512 sine = _mm512_maskz_loadu_ps(mask, args.sine + i);
    const __m512 x0 = _mm512_maskz_loadu_ps(mask, x + i);
    const __m512 x1 = _mm512_maskz_loadu_ps(mask, x + half + i);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(x0, cosine, _mm512_mul_ps(x1, sine)));
    _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(x0, sine, _mm512_mul_ps(x1, cosine)));
  }
}

// Eight pairs a step: each lane multiplies itself by its pair's cosine, and its neighbour by the
// sine, subtracted in the even lanes and added in the odd.
void RopeInterleaved(const RopeArgs& args, float* x) {
  const uint32_t half = args.rope_dim / 2;
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  for (uint32_t i = 0; i < half; i += 8) {
    const __mmask8 pairs = static_cast<__mmask8>(TailMask(half - i));
    const __mmask16 mask = TailMask(2 * (half - i));
    const __m512 cosine = _mm512_permutexvar_ps(
        twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(pairs, args.cosine + i)));
    const __m512 sine = _mm512_permutexvar_ps(
        twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(pairs, args.sine + i)));
    const __m512 own = _mm512_maskz_loadu_ps(mask, x + 2 * i);
    const __m512 neighbour = _mm512_permute_ps(own, 0xb1);
    _mm512_mask_storeu_ps(x + 2 * i, mask,
                          _mm512_fmaddsub_ps(own, cosine, _mm512_mul_ps(neighbour, sine)));
  }
}

void Rope(const RopeArgs& args) {
  for (uint32_t h = 0; h < args.num_heads; ++h) {
    float* x = args.x + size_t{h} * args.head_dim;
    args.style == RopeStyle::kHalves ? RopeHalves(args, x) : RopeInterleaved(args, x);
  }
}

void Attention(const AttentionArgs& args) {
  AttendWhole(Avx512AttentionUnit, args);
}

void SwiGlu(const float* gate, const float* up, float* y, uint32_t n) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const auto silu = [&](__m512 g) {
    return _mm512_div_ps(g, _mm512_add_ps(one, Exp(_mm512_sub_ps(_mm512_setzero_ps(), g))));
  };
  const uint32_t whole = n / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    _mm512_storeu_ps(y + i,
                     _mm512_mul_ps(silu(_mm512_loadu_ps(gate + i)), _mm512_loadu_ps(up + i)));
  if (whole == n) return;
  const __mmask16 mask = TailMask(n - whole);
  const __m512 tail = silu(_mm512_maskz_loadu_ps(mask, gate + whole));
  _mm512_mask_storeu_ps(y + whole, mask,
                        _mm512_mul_ps(tail, _mm512_maskz_loadu_ps(mask, up + whole)));
}

void ExpRow(const float* x, float* y, uint32_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = TailMask(n - static_cast<uint32_t>(i));
    _mm512_mask_storeu_ps(y + i, mask, Exp(_mm512_maskz_loadu_ps(mask, x + i)));
  }
}

uint32_t ChunkEnd(uint32_t begin, uint32_t n) {
  return n - begin < kLogitChunk ? n : begin + kLogitChunk;
}

// Of `count` floats, 1 to kLogitChunk. Inlined with a constant count the masks are gone.
inline float ChunkMaximum(const float* x, uint32_t count) {
  __m512 most = _mm512_set1_ps(x[0]);
  for (uint32_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = TailMask(count - i);
    most = _mm512_mask_max_ps(most, mask, most, _mm512_maskz_loadu_ps(mask, x + i));
  }
  return _mm512_reduce_max_ps(most);
}

inline float ChunkSum(const float* x, uint32_t count, float greatest) {
  const __m512 all = _mm512_set1_ps(greatest);
  __m512 sum = _mm512_setzero_ps();
  __m512 zero = _mm512_setzero_ps();
  for (uint32_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = TailMask(count - i);
    const __m512 values = _mm512_maskz_loadu_ps(mask, x + i);
    sum = _mm512_mask_add_ps(sum, mask, sum, Exp(_mm512_sub_ps(values, all)));
    zero = _mm512_fmadd_ps(values, _mm512_setzero_ps(), zero);  // NaN unless finite
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum, zero));
}

// Whole chunks are taken four at a time: the sums of one need its maximum, which takes as long to
// reduce as to find.
void LogitStats(const float* x, uint32_t n, float* maxima, float* sums) {
  constexpr uint32_t kChunks = 4;
  uint32_t begin = 0;
  for (; n - begin >= kChunks * kLogitChunk; begin += kChunks * kLogitChunk) {
    float* most = maxima + begin / kLogitChunk;
    KVRM_UNROLL
    for (uint32_t c = 0; c < kChunks; ++c)
      most[c] = ChunkMaximum(x + begin + c * kLogitChunk, kLogitChunk);
    KVRM_UNROLL
    for (uint32_t c = 0; c < kChunks; ++c)
      sums[begin / kLogitChunk + c] = ChunkSum(x + begin + c * kLogitChunk, kLogitChunk, most[c]);
  }
  for (; begin < n; begin += kLogitChunk) {
    const uint32_t count = ChunkEnd(begin, n) - begin;
    maxima[begin / kLogitChunk] = ChunkMaximum(x + begin, count);
    sums[begin / kLogitChunk] = ChunkSum(x + begin, count, maxima[begin / kLogitChunk]);
  }
}

void LogitWeights(const float* x, uint32_t n, float greatest, float scale, float* sums) {
  const __m512 all = _mm512_set1_ps(greatest);
  const __m512 factor = _mm512_set1_ps(scale);
  for (uint32_t begin = 0; begin < n; begin += kLogitChunk) {
    const uint32_t end = ChunkEnd(begin, n);
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = begin; i < end; i += kLanes) {
      const __mmask16 mask = TailMask(end - i);
      const __m512 values = _mm512_maskz_loadu_ps(mask, x + i);
      const __m512 weights = Exp(_mm512_mul_ps(_mm512_sub_ps(values, all), factor));
      sum = _mm512_mask_add_ps(sum, mask, sum, weights);
    }
    *sums++ = _mm512_reduce_add_ps(sum);
  }
}

uint32_t Select(const LogitSelection& selection, uint32_t* ids) {
  const __m512 low = _mm512_set1_ps(selection.low);
  const __m512 high = _mm512_set1_ps(selection.high);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t count = 0;
  for (uint32_t i = selection.begin; i < selection.end; i += kLanes) {
    const __mmask16 mask = TailMask(selection.end - i);
    const __m512 values = _mm512_maskz_loadu_ps(mask, selection.x + i);
    const __mmask16 above = _mm512_mask_cmp_ps_mask(mask, values, low, _CMP_GE_OQ);
    const __mmask16 pass = _mm512_mask_cmp_ps_mask(above, values, high, _CMP_LT_OQ);
    const auto passed = static_cast<uint32_t>(__builtin_popcount(pass));
    const __m512i own = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(i)));
    _mm512_mask_storeu_epi32(ids + count, TailMask(passed), _mm512_maskz_compress_epi32(pass, own));
    count += passed;
  }
  return count;
}

template <DType kType, ActFormat kAct>
constexpr MatKernel kMat = {.act = kAct,
                            .packed_bytes = TiledBytes<kType>,
                            .pack = TiledPack<kType>,
                            .matmul = Avx512MatMul,
                            .row = TiledRow<kType>};

}  // namespace

const CpuKernels kAvx512Kernels = {
    .name = "avx512",
    .mat = {kMat<DType::kF32, ActFormat::kF32>, kMat<DType::kF16, ActFormat::kF32>,
            kMat<DType::kBf16, ActFormat::kF32>, kMat<DType::kQ8_0, ActFormat::kQ8>,
            kMat<DType::kQ4_0, ActFormat::kQ8>, kMat<DType::kQ5_0, ActFormat::kQ8>,
            kMat<DType::kQ4_K, ActFormat::kQ8>, kMat<DType::kQ5_K, ActFormat::kQ8>,
            kMat<DType::kQ6_K, ActFormat::kQ8>},
    .act = {{nullptr, nullptr}, {BytesBf16, PrepareBf16}, {BytesQ8, PrepareQ8}},
    .rms_norm = RmsNorm,
    .rope = Rope,
    .store_kv = StoreKv,
    .attention = Attention,
    .attention_unit = Avx512AttentionUnit,
    .attention_heads = 8,
    .swiglu = SwiGlu,
    .exp = ExpRow,
    .logit_stats = LogitStats,
    .logit_weights = LogitWeights,
    .select = Select,
};

}  // namespace kvrm