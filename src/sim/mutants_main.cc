// SPDX-License-Identifier: Apache-2.0
// kvrm_mutants: the gate on the simulator. The cache, the engine and the simulator compiled with
// planted bugs; each must be found, and the control build must be silent.
//
//   kvrm_mutants [SEEDS [MAX_SCHEDULES [NAME]]]    25 20000, all of them
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>

#include "sim/mutants.h"

namespace {

template <typename Number>
bool Parse(const char* text, Number* value) {
  const char* const end = text + std::strlen(text);
  const std::from_chars_result result = std::from_chars(text, end, *value);
  return result.ec == std::errc() && result.ptr == end && *value > 0;
}

}  // namespace

int main(int argc, char** argv) {
  kvrm::MutantPlan plan;
  const bool numbers = (argc < 2 || Parse(argv[1], &plan.num_seeds)) &&
                       (argc < 3 || Parse(argv[2], &plan.max_schedules));
  if (argc == 4) plan.only = kvrm::FindMutant(argv[3]);
  if (!numbers || argc > 4 || (argc == 4 && !plan.only)) {
    std::fprintf(stderr, "usage: kvrm_mutants [SEEDS [MAX_SCHEDULES [NAME]]]\n");
    return 2;
  }
  try {
    return kvrm::RunMutants(plan) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvrm_mutants: %s\n", error.what());
    return 2;
  }
}
