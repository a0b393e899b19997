// SPDX-License-Identifier: Apache-2.0
// kvrm report: metrics of records that kvrm replay has written.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "replay/report.h"

namespace kvrm {
namespace {

struct ReportFlags {
  std::vector<std::string> records;
  std::vector<std::string> goodput;
  bool json = false;
  std::string html;
};

void RunReport(const ReportFlags& flags) {
  const GoodputLimits limits = ParseGoodput(flags.goodput);
  std::vector<Record> records;
  records.reserve(flags.records.size());
  std::vector<ReportedRecord> reported;
  for (const std::string& path : flags.records) {
    records.push_back(OrThrow(ReadRecord(path)));
    reported.push_back({.name = std::filesystem::path(path).filename().string(),
                        .record = &records.back(),
                        .metrics = Measure(records.back(), limits)});
  }
  std::string text;
  if (flags.json) {
    text = ReportJson(reported);
  } else {
    for (const ReportedRecord& each : reported)
      text += ReportText(each) + "\n";
    if (reported.size() > 1) text += ReportTable(reported);
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (!flags.html.empty()) OrThrow(WriteFile(flags.html, ReportHtml(reported)));
}

}  // namespace

void AddReportCommand(CLI::App& app) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* command = app.add_subcommand("report", "metrics of what kvrm replay has recorded");
  command->add_option("records", flags->records, "records")->required();
  command->add_option("--goodput", flags->goodput,
                      "limits a good request keeps, like ttft:500 tpot:100 e2el:10000, in ms");
  command->add_flag("--json", flags->json, "an array with one object a record");
  command->add_option("--html", flags->html, "also write one page that needs nothing else");
  command->callback([flags] { RunReport(*flags); });
}

}  // namespace kvrm
