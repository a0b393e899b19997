// SPDX-License-Identifier: Apache-2.0
#include "server/http_metrics.h"

#include <algorithm>

namespace kvrm {
namespace {

constexpr std::string_view kOther = "other";

std::string_view MethodLabel(std::string_view method) {
  constexpr std::array<std::string_view, 6> kMethods = {"GET",     "HEAD", "POST",
                                                        "OPTIONS", "PUT",  "DELETE"};
  const auto* const found = std::find(kMethods.begin(), kMethods.end(), method);
  return found == kMethods.end() ? kOther : *found;
}

// A duration in seconds, to the microsecond.
std::string Seconds(std::int64_t ns) {
  const std::int64_t us = ns / 1000;
  std::string fraction = std::to_string(us % 1000000);
  fraction.insert(0, 6 - fraction.size(), '0');
  return std::to_string(us / 1000000) + '.' + fraction;
}

void AddLine(std::string& text, std::string_view name, std::string_view type,
             std::string_view value) {
  text += "# TYPE ";
  text += name;
  text += ' ';
  text += type;
  text += '\n';
  text += name;
  text += ' ';
  text += value;
  text += '\n';
}

}  // namespace

void HttpMetrics::Count(std::string_view handler, const AccessRecord& record) {
  const std::string_view label = handler.empty() ? kOther : handler;
  ++counts_[{label, MethodLabel(record.method), record.status}];
  Durations& durations = durations_[label];
  const auto* const bound = std::find_if(kBoundsMs.begin(), kBoundsMs.end(), [&](int ms) {
    return record.duration_ns <= std::int64_t{ms} * 1000000;
  });
  ++durations.buckets[static_cast<std::size_t>(bound - kBoundsMs.begin())];
  ++durations.count;
  durations.sum_ns += record.duration_ns;
}

std::string HttpMetrics::Text(const HttpStats& stats, std::size_t num_connections) const {
  std::string text = "# TYPE http_requests_total counter\n";
  for (const auto& [labels, count] : counts_) {
    const auto& [handler, method, status] = labels;
    text += "http_requests_total{handler=\"" + std::string(handler) + "\",method=\"" +
            std::string(method) + "\",status=\"" + std::to_string(status) + "\"} " +
            std::to_string(count) + '\n';
  }
  text += "# TYPE http_request_duration_seconds histogram\n";
  for (const auto& [handler, durations] : durations_) {
    const std::string label = "{handler=\"" + std::string(handler) + '"';
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < durations.buckets.size(); ++i) {
      below += durations.buckets[i];
      const std::string bound =
          i < kBoundsMs.size() ? Seconds(std::int64_t{kBoundsMs[i]} * 1000000) : "+Inf";
      text += "http_request_duration_seconds_bucket" + label + ",le=\"" + bound + "\"} " +
              std::to_string(below) + '\n';
    }
    text += "http_request_duration_seconds_sum" + label + "} " + Seconds(durations.sum_ns) + '\n';
    text += "http_request_duration_seconds_count" + label + "} " + std::to_string(durations.count) +
            '\n';
  }
  const auto counter = [&](std::string_view name, std::uint64_t value) {
    AddLine(text, name, "counter", std::to_string(value));
  };
  AddLine(text, "kvrm:http_connections", "gauge", std::to_string(num_connections));
  counter("kvrm:http_accepted_total", stats.num_accepted);
  counter("kvrm:http_turned_away_total", stats.num_turned_away);
  counter("kvrm:http_refused_total", stats.num_refused);
  counter("kvrm:http_timed_out_total", stats.num_timed_out);
  counter("kvrm:http_overflowed_total", stats.num_overflowed);
  counter("kvrm:http_tls_failures_total", stats.num_tls_failures);
  counter("kvrm:http_exceptions_total", stats.num_exceptions);
  counter("kvrm:io_stalls_total", stats.num_stalls);
  AddLine(text, "kvrm:io_longest_stall_seconds", "gauge", Seconds(stats.longest_handler_ns));
  AddLine(text, "kvrm:io_longest_stall_cpu_seconds", "gauge", Seconds(stats.longest_cpu_ns));
  return text;
}

}  // namespace kvrm
