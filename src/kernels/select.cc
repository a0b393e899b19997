// SPDX-License-Identifier: Apache-2.0
#include <cpuid.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/result.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// `better` where it has an entry, `lesser` elsewhere. A MatKernel or ActKernel is taken whole.
CpuKernels Over(const CpuKernels& better, const CpuKernels& lesser) {
  CpuKernels result = better;
  for (int i = 0; i < kNumDTypes; ++i) {
    if (result.mat[i].matmul == nullptr) result.mat[i] = lesser.mat[i];
  }
  for (int i = 0; i < kNumActFormats; ++i) {
    if (result.act[i].prepare == nullptr) result.act[i] = lesser.act[i];
  }
  if (result.rms_norm == nullptr) result.rms_norm = lesser.rms_norm;
  if (result.rope == nullptr) result.rope = lesser.rope;
  if (result.store_kv == nullptr) result.store_kv = lesser.store_kv;
  if (result.attention == nullptr) {
    result.attention = lesser.attention;
    result.attention_unit = lesser.attention_unit;
    result.attention_heads = lesser.attention_heads;
  }
  if (result.swiglu == nullptr) result.swiglu = lesser.swiglu;
  if (result.exp == nullptr) result.exp = lesser.exp;
  if (result.logit_stats == nullptr) result.logit_stats = lesser.logit_stats;
  if (result.logit_weights == nullptr) result.logit_weights = lesser.logit_weights;
  if (result.select == nullptr) result.select = lesser.select;
  return result;
}

// The flags each file is compiled with (CMakeLists.txt). The run-time library also asks whether the
// operating system saves the wide registers.
bool HasAvx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  // The builtin of clang 14 does not know F16C by name.
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

const CpuKernels& Avx2() {
  static const CpuKernels table = Over(kAvx2Kernels, kScalarKernels);
  return table;
}

const CpuKernels& Avx512() {
  static const CpuKernels table = Over(kAvx512Kernels, Avx2());
  return table;
}

bool HasAvx512Bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return HasAvx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & (1u << 5)) != 0;
}

const CpuKernels& Avx512Bf16() {
  static const CpuKernels table = Over(kAvx512Bf16Kernels, Avx512());
  return table;
}

const CpuKernels& Reference() {
  static const CpuKernels table = Over(kReferenceKernels, kScalarKernels);
  return table;
}

const CpuKernels& Best() {
  // Twice as fast as vfmadd on all of AMD's processors that have it, half as fast on Intel's.
  if (HasAvx512Bf16() && __builtin_cpu_is("amd")) return Avx512Bf16();
  return HasAvx512() ? Avx512() : HasAvx2() ? Avx2() : kScalarKernels;
}

const CpuKernels& Choose() {
  const char* forced = std::getenv("KVRM_ISA");
  if (forced == nullptr || *forced == '\0') return Best();
  const CpuKernels* kernels = FindCpuKernels(forced);
  if (kernels == nullptr || kernels == &Reference())
    throw StartError(
        "KVRM_ISA is neither scalar, avx2, avx512 nor avx512_bf16, or this processor lacks it: " +
        std::string(forced));
  return *kernels;
}

}  // namespace

const CpuKernels& SelectCpuKernels() {
  static const CpuKernels& kernels = Choose();
  return kernels;
}

const CpuKernels* FindCpuKernels(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return &kScalarKernels;
  if (std::strcmp(name, "reference") == 0) return &Reference();
  if (std::strcmp(name, "avx2") == 0) return HasAvx2() ? &Avx2() : nullptr;
  if (std::strcmp(name, "avx512") == 0) return HasAvx512() ? &Avx512() : nullptr;
  if (std::strcmp(name, "avx512_bf16") == 0) return HasAvx512Bf16() ? &Avx512Bf16() : nullptr;
  return nullptr;
}

}  // namespace kvrm
