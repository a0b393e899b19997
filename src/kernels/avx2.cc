// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu_kernels.h"

namespace kvrm {

const CpuKernels kAvx2Kernels = {
    .name = "avx2",
    .mat = {},
    .act = {},
    .rms_norm = nullptr,
    .rope = nullptr,
    .store_kv = nullptr,
    .attention = nullptr,
    .swiglu = nullptr,
    .exp = nullptr,
};

}  // namespace kvrm
