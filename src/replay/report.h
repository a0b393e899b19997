// SPDX-License-Identifier: Apache-2.0
// Reports of records: tables for a terminal, JSON, and one HTML file that needs nothing else.
//
// Threading: pure functions.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "replay/metrics.h"
#include "replay/record.h"

namespace kvrm {

struct ReportedRecord {
  std::string name;  // of its file
  const Record* record = nullptr;
  Metrics metrics;
};

// One block a record, with the lines and the names of `vllm bench serve`.
std::string ReportText(const ReportedRecord& reported);
// Of several: one row each.
std::string ReportTable(std::span<const ReportedRecord> reported);
// An array with one object a record, in one line.
std::string ReportJson(std::span<const ReportedRecord> reported);
// `lead`: markup of the caller that comes before all else.
std::string ReportHtml(std::span<const ReportedRecord> reported, const std::string& lead = "");

}  // namespace kvrm
