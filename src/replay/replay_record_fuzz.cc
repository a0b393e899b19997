// SPDX-License-Identifier: Apache-2.0
// Records: any bytes give a record, whose metrics are finite, or an error of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "replay/metrics.h"
#include "replay/record.h"
#include "replay/report.h"

namespace kvrm {
namespace {

void Try(std::string_view text) {
  const Result<Record> record = ParseRecord(text);
  if (!record) {
    CHECK(record.error().message.find('\n') == std::string::npos);
    return;
  }
  const Metrics metrics = Measure(*record, {.ttft_ms = 100.0});
  for (const double value : {metrics.duration_s, metrics.ttft_ms.p999, metrics.itl_ms.mean,
                             metrics.steps.cv, metrics.memory.reserved_over_live}) {
    CHECK(std::isfinite(value));
  }
  const ReportedRecord reported = {.name = "fuzz", .record = &*record, .metrics = metrics};
  CHECK(!ReportText(reported).empty());
  CHECK(!ReportJson({&reported, 1}).empty());
  CHECK(!ReportHtml({&reported, 1}).empty());
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvrm::Try({reinterpret_cast<const char*>(data), size});
  return 0;
}
