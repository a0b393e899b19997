// SPDX-License-Identifier: Apache-2.0
// One page: tables, and charts as SVG that was drawn here. No script and nothing from elsewhere, so
// that it opens from a disk, prints, and looks alike everywhere.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "replay/map_figure.h"
#include "replay/report.h"
#include "replay/text.h"
#include "replay/ticks.h"

namespace kvrm {
namespace {

// A line is thinned to its least and greatest value in each of so many columns: spikes stay.
constexpr std::size_t kColumns = 480;
constexpr double kWidth = 640;
constexpr double kHeight = 260;
constexpr double kLeft = 58;
constexpr double kRight = 12;
constexpr double kTop = 12;
constexpr double kBottom = 46;  // two lines of the letters that a narrow window has
constexpr std::size_t kNumColors = 6;

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--fg:#1b1f24;--mut:#5a6472;--bg:#fff;--card:#f6f7f9;--line:#d7dce2;
--c0:#2563b8;--c1:#c2570c;--c2:#2f7d32;--c3:#a3267b;--c4:#6b5bd2;--c5:#8a6d00;--kc:#c9d0d8;
--k0:#4e79a7;--k1:#f28e2b;--k2:#59a14f;--k3:#e15759;--k4:#76b7b2;--k5:#b07aa1;--k6:#d4b52c;
--k7:#9c755f;--k8:#3b5bdb;--k9:#ff8fb1}
@media(prefers-color-scheme:dark){:root{--fg:#e4e8ee;--mut:#9aa5b4;--bg:#14171b;--card:#1d2127;
--line:#343b45;--c0:#6aa7f5;--c1:#f0975a;--c2:#74c178;--c3:#e07fc0;--c4:#a79bf5;--c5:#d8bb4a;--kc:#3d4652;
--k0:#6d9ccd;--k1:#e08a35;--k2:#63b15a;--k3:#e06a6c;--k4:#5fa8a2;--k5:#b98aac;--k6:#cdb544;
--k7:#a98772;--k8:#7b92f0;--k9:#e58aa8}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}main{max-width:1360px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.4rem;margin:.2em 0}h2{font-size:1.1rem;margin:1.8em 0 .5em}
h3{font-size:.95rem;margin:0 0 .3em}p{color:var(--mut);margin:.3em 0}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--mut);font:12px system-ui,sans-serif}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
tr:last-child td{border-bottom:0}th{color:var(--mut);font-weight:600}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;
overflow-x:auto;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:.4em 0;font-size:14px;color:var(--mut)}
.legend i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle}
.axes line{stroke:var(--line)}
@media(min-width:940px){.wide{grid-column:span 2}.wide svg text{font-size:9px}}
@media(max-width:700px){svg text{font-size:18px}}
)";

std::string Color(std::size_t i) {
  return Format("var(--c%zu)", i % kNumColors);
}

using Point = std::pair<double, double>;
struct Series {
  std::string name;
  std::size_t color = 0;
  std::vector<Point> points;  // ascending in x
  bool dashed = false;
};

struct Chart {
  std::string title;
  std::string x_unit;
  std::string y_unit;
  bool log_x = false;
  double max_y = 0.0;  // 0: of the data
  std::vector<Series> series = {};
};

// Least and greatest of each column, in the order in which they came.
std::vector<Point> Thinned(const std::vector<Point>& points) {
  if (points.size() <= 2 * kColumns) return points;
  std::vector<Point> thin;
  for (std::size_t c = 0; c < kColumns; ++c) {
    const auto begin = points.begin() + static_cast<std::ptrdiff_t>(c * points.size() / kColumns);
    const auto end =
        points.begin() + static_cast<std::ptrdiff_t>((c + 1) * points.size() / kColumns);
    const auto by_y = [](const Point& a, const Point& b) { return a.second < b.second; };
    auto [low, high] = std::minmax_element(begin, end, by_y);
    if (high < low) std::swap(low, high);
    thin.push_back(*low);
    if (high != low) thin.push_back(*high);
  }
  return thin;
}

// The coarsest of 1, of 1 and 3, of 1, 2 and 5 times powers of ten that has four ticks or more.
// Where the range is too short for all of them, logarithms are nearly even: so are the ticks.
// Requires: 0 < low.
std::vector<double> LogTicks(double low, double high) {
  static const std::vector<std::vector<double>> kFactors = {{1.0}, {1.0, 3.0}, {1.0, 2.0, 5.0}};
  for (const std::vector<double>& factors : kFactors) {
    std::vector<double> ticks;
    for (double power = std::floor(std::log10(low)); power <= std::log10(high); power += 1.0) {
      for (const double factor : factors) {
        const double x = factor * std::pow(10.0, power);
        if (x >= low && x <= high) ticks.push_back(x);
      }
    }
    if (ticks.size() >= 4) return ticks;
  }
  return EvenTicks(low, high, 5);
}

class Axes {
 public:
  explicit Axes(const Chart& chart) : chart_(chart), y_high_(chart.max_y) {
    bool any = false;
    for (const Series& series : chart.series) {
      for (const auto& [x, y] : series.points) {
        if (chart.log_x && x <= 0.0) continue;
        x_low_ = any ? std::min(x_low_, x) : x;
        x_high_ = any ? std::max(x_high_, x) : x;
        if (chart.max_y <= 0.0) y_high_ = std::max(y_high_, y);
        any = true;
      }
    }
    // Without a positive value a logarithmic axis has nothing to begin at.
    if (!any && chart.log_x) x_low_ = x_high_ = 1.0;
    if (y_high_ <= 0.0) y_high_ = 1.0;
    if (chart.max_y <= 0.0) y_high_ *= 1.05;
    if (x_high_ <= x_low_) x_high_ = x_low_ + (x_low_ > 0.0 ? x_low_ : 1.0);
  }

  double X(double x) const {
    const double share = chart_.log_x
                             ? std::log(std::max(x, x_low_) / x_low_) / std::log(x_high_ / x_low_)
                             : (x - x_low_) / (x_high_ - x_low_);
    return kLeft + share * (kWidth - kLeft - kRight);
  }
  double Y(double y) const {
    return kHeight - kBottom - std::min(y / y_high_, 1.0) * (kHeight - kTop - kBottom);
  }

  std::string Svg() const {
    std::string svg = "<g class=\"axes\">";
    const double y_step = NiceStep(y_high_, 5);
    for (double y = 0.0; y <= y_high_ * 1.0001; y += y_step) {
      svg += Format("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                    kWidth - kRight, Y(y), Y(y));
      svg += Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>", kLeft - 6,
                    Y(y) + 4, TickLabel(y).c_str());
    }
    for (const double x : XTicks())
      svg += Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", X(x),
                    kHeight - kBottom + 18, TickLabel(x).c_str());
    return svg + Format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text></g>",
                        kWidth - kRight, kHeight - 6, chart_.x_unit.c_str());
  }

 private:
  std::vector<double> XTicks() const {
    return chart_.log_x ? LogTicks(x_low_, x_high_) : EvenTicks(x_low_, x_high_, 6);
  }

  const Chart& chart_;
  double x_low_ = 0.0;
  double x_high_ = 0.0;
  double y_high_ = 0.0;
};

std::string ChartSvg(const Chart& chart) {
  const bool empty =
      std::ranges::all_of(chart.series, [](const Series& series) { return series.points.empty(); });
  if (empty) return "";
  const Axes axes(chart);
  std::string svg = "<figure><h3>" + EscapedHtml(chart.title) + " <small>(" + chart.y_unit +
                    ")</small></h3><svg viewBox=\"0 0 640 260\" role=\"img\" aria-label=\"" +
                    EscapedHtml(chart.title) + "\">" + axes.Svg();
  for (const Series& series : chart.series) {
    if (series.points.empty()) continue;
    svg += "<path fill=\"none\" stroke=\"" + Color(series.color) + "\" stroke-width=\"1.6\"" +
           (series.dashed ? " stroke-dasharray=\"5 4\"" : "") + " d=\"";
    char op = 'M';
    for (const auto& [x, y] : Thinned(series.points)) {
      svg += Format("%c%.1f %.1f", op, axes.X(x), axes.Y(y));
      op = 'L';
    }
    svg += "\"><title>" + EscapedHtml(series.name) + "</title></path>";
  }
  return svg + "</svg></figure>\n";
}

// The share of values up to each, at 200 places and in the tail.
std::vector<Point> Cdf(std::vector<double> values) {
  std::ranges::sort(values);
  std::vector<Point> points;
  if (values.empty()) return points;
  for (int i = 0; i <= 200; ++i)
    points.emplace_back(Percentile(values, i / 200.0), i / 200.0);
  points.insert(points.end() - 1, {Percentile(values, 0.999), 0.999});
  return points;
}

double Ms(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-6;
}

std::vector<Point> Cdf(const LogHistogram& ns) {
  std::vector<Point> points;
  if (ns.count() == 0) return points;
  for (int i = 0; i < 200; ++i)
    points.emplace_back(ns.Quantile(i / 200.0) * 1e-6, i / 200.0);
  points.emplace_back(ns.Quantile(0.999) * 1e-6, 0.999);
  points.emplace_back(static_cast<double>(ns.max()) * 1e-6, 1.0);
  return points;
}

struct Latency {
  const char* title;
  std::function<void(const RequestRecord&, std::vector<double>*)> take;
  bool of_gaps = false;  // which a summarised record has as a histogram
};

void TakeTtft(const RequestRecord& request, std::vector<double>* values) {
  const OutputSpan outputs = request.outputs();
  if (outputs.count > 0) values->push_back(Ms(outputs.first_ns));
}

void TakeItl(const RequestRecord& request, std::vector<double>* values) {
  for (std::size_t i = 1; i < request.gaps_ns.size(); ++i)
    values->push_back(Ms(request.gaps_ns[i]));
}

void TakeE2el(const RequestRecord& request, std::vector<double>* values) {
  const OutputSpan outputs = request.outputs();
  if (outputs.count > 0) values->push_back(Ms(outputs.last_ns));
}

std::string CdfCharts(std::span<const ReportedRecord> reported) {
  const Latency latencies[] = {{"Time to first token", TakeTtft},
                               {"Inter-token latency", TakeItl, /*of_gaps=*/true},
                               {"End-to-end latency", TakeE2el}};
  std::string html;
  for (const Latency& latency : latencies) {
    Chart chart = {.title = latency.title,
                   .x_unit = "ms, logarithmic",
                   .y_unit = "share of them up to it",
                   .log_x = true,
                   .max_y = 1.0};
    for (std::size_t i = 0; i < reported.size(); ++i) {
      std::vector<double> values;
      for (const RequestRecord& request : reported[i].record->requests) {
        if (!request.warmup && !request.failed()) latency.take(request, &values);
      }
      const std::optional<RecordSummary>& summary = reported[i].record->summary;
      const bool has_gaps_summed = latency.of_gaps && summary;
      chart.series.push_back(
          {reported[i].name, i, has_gaps_summed ? Cdf(summary->itl_ns) : Cdf(std::move(values))});
    }
    html += ChartSvg(chart);
  }
  return html;
}

// Over time, one line a record: of steps.
std::string StepChart(std::span<const ReportedRecord> reported, const char* title, const char* unit,
                      const std::function<double(const StepRecord&)>& value) {
  Chart chart = {.title = title, .x_unit = "s", .y_unit = unit};
  for (std::size_t i = 0; i < reported.size(); ++i) {
    Series series = {reported[i].name, i, {}};
    for (const StepRecord& step : reported[i].record->steps)
      series.points.emplace_back(static_cast<double>(step.at_ns) * 1e-9, value(step));
    chart.series.push_back(std::move(series));
  }
  return ChartSvg(chart);
}

constexpr double kMib = 1024.0 * 1024.0;

std::string StepCharts(std::span<const ReportedRecord> reported) {
  return StepChart(reported, "Step time", "ms", [](const StepRecord& s) { return Ms(s.ns); }) +
         StepChart(reported, "Rows of a step", "rows",
                   [](const StepRecord& s) { return static_cast<double>(s.num_rows); }) +
         StepChart(reported, "KV bytes moved by a step", "MiB",
                   [](const StepRecord& s) { return static_cast<double>(s.moved_bytes) / kMib; }) +
         StepChart(reported, "Transfer groups of a step", "groups",
                   [](const StepRecord& s) { return static_cast<double>(s.num_groups); });
}

// Reserved, mapped (dashed) and live KV of each record, and the resident memory of its process.
std::string MemoryCharts(std::span<const ReportedRecord> reported) {
  Chart kv = {
      .title = "KV memory: reserved, mapped (dashed), live", .x_unit = "s", .y_unit = "MiB"};
  Chart resident = {.title = "Resident memory of the server", .x_unit = "s", .y_unit = "MiB"};
  for (std::size_t i = 0; i < reported.size(); ++i) {
    Series series[3] = {{reported[i].name + ": reserved", i, {}},
                        {reported[i].name + ": mapped", i, {}, true},
                        {reported[i].name + ": live", i, {}}};
    const auto add = [&series](std::int64_t at_ns, const std::uint64_t(&bytes)[3]) {
      for (std::size_t k = 0; k < 3; ++k)
        series[k].points.emplace_back(static_cast<double>(at_ns) * 1e-9,
                                      static_cast<double>(bytes[k]) / kMib);
    };
    const Record& record = *reported[i].record;
    for (const StepRecord& s : record.steps)
      add(s.at_ns, {s.reserved_bytes, s.mapped_bytes, s.live_bytes});
    Series process = {reported[i].name, i, {}};
    for (const MemoryRecord& m : record.memory) {
      if (record.steps.empty() && m.reserved_bytes > 0)
        add(m.at_ns, {m.reserved_bytes, m.mapped_bytes, m.live_bytes});
      if (m.resident_bytes > 0)
        process.points.emplace_back(static_cast<double>(m.at_ns) * 1e-9,
                                    static_cast<double>(m.resident_bytes) / kMib);
    }
    for (Series& each : series)
      kv.series.push_back(std::move(each));
    resident.series.push_back(std::move(process));
  }
  return ChartSvg(kv) + ChartSvg(resident);
}

std::string Cell(double value) {
  return Format("<td>%.2f</td>", value);
}

std::string Table(std::span<const ReportedRecord> reported) {
  std::string html =
      "<div class=\"scroll\"><table><tr><th>record</th><th>completed</th><th>failed</th>"
      "<th>req/s</th><th>out tok/s</th><th>TTFT p50</th><th>TTFT p99</th><th>TPOT p50</th>"
      "<th>ITL p50</th><th>ITL p99</th><th>ITL p99.9</th><th>ITL max</th><th>E2EL p99</th>"
      "<th>step CV</th><th>spikes</th><th>spike area %</th><th>moved MiB</th>"
      "<th>reserved / live</th></tr>";
  for (const ReportedRecord& each : reported) {
    const Metrics& m = each.metrics;
    html +=
        "<tr><td>" + EscapedHtml(each.name) + "</td>" +
        Format("<td>%llu</td><td>%llu</td>", static_cast<unsigned long long>(m.completed),
               static_cast<unsigned long long>(m.failed)) +
        Cell(m.request_throughput) + Cell(m.output_throughput) + Cell(m.ttft_ms.p50) +
        Cell(m.ttft_ms.p99) + Cell(m.tpot_ms.p50) + Cell(m.itl_ms.p50) + Cell(m.itl_ms.p99) +
        Cell(m.itl_ms.p999) + Cell(m.itl_ms.max) + Cell(m.e2el_ms.p99) +
        Format("<td>%.3f</td><td>%llu</td><td>%.3f</td>", m.steps.cv,
               static_cast<unsigned long long>(m.steps.num_spikes), 100.0 * m.steps.spike_area) +
        Cell(static_cast<double>(m.steps.moved_bytes) / kMib) + Cell(m.memory.reserved_over_live) +
        "</tr>";
  }
  return html + "</table></div><p>Latencies in ms. Warm-up requests are not counted.</p>";
}

std::string PhaseTable(const ReportedRecord& reported) {
  if (reported.metrics.phases.empty()) return "";
  std::string html = "<h2>Victims of " + EscapedHtml(reported.name) +
                     "</h2><div class=\"scroll\"><table><tr><th>phase</th><th>gaps</th>"
                     "<th>p50</th><th>p99</th><th>p99.9</th><th>max</th><th>p99.9 / quiet</th>"
                     "<th>max / quiet</th></tr>";
  for (const PhaseMetrics& phase : reported.metrics.phases) {
    html += "<tr><td>" + EscapedHtml(phase.name) + "</td>" +
            Format("<td>%llu</td>", static_cast<unsigned long long>(phase.itl.count)) +
            Cell(phase.itl.p50) + Cell(phase.itl.p99) + Cell(phase.itl.p999) + Cell(phase.itl.max) +
            Cell(phase.p999_ratio) + Cell(phase.max_ratio) + "</tr>";
  }
  return html + "</table></div>";
}

std::string Configurations(std::span<const ReportedRecord> reported) {
  std::string html = "<h2>Configurations and commands</h2>";
  for (const ReportedRecord& each : reported) {
    const RecordHeader& header = each.record->header;
    html += "<h3>" + EscapedHtml(each.name) + "</h3><p>" + EscapedHtml(header.workload) + " on " +
            EscapedHtml(header.target) + ", " + EscapedHtml(header.clock) + " time, seed " +
            Format("%llu", static_cast<unsigned long long>(header.seed));
    for (const auto& [name, value] : header.config)
      html += ", " + EscapedHtml(name) + " " + EscapedHtml(value);
    html += each.record->complete ? "</p>" : "; the record was cut short</p>";
    html += "<pre>" + EscapedHtml(header.command) + "</pre>";
  }
  return html;
}

}  // namespace

std::string ReportHtml(std::span<const ReportedRecord> reported, const std::string& lead) {
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>KVRM replay report</title><style>" +
      std::string(kStyle) + "</style></head><body><main><h1>KVRM replay report</h1>" + lead +
      "<div class=\"legend\">";
  for (std::size_t i = 0; i < reported.size(); ++i)
    html += "<span><i style=\"background:" + Color(i) + "\"></i>" + EscapedHtml(reported[i].name) +
            "</span>";
  html += "</div>" + Table(reported);
  for (const ReportedRecord& each : reported)
    html += PhaseTable(each);
  html += "<h2>Latencies</h2><div class=\"grid\">" + CdfCharts(reported) + "</div>";
  const std::string steps = StepCharts(reported);
  if (!steps.empty()) html += "<h2>Steps over time</h2><div class=\"grid\">" + steps + "</div>";
  std::string maps;
  for (const ReportedRecord& each : reported)
    maps += MapFigure(*each.record, each.name);
  if (!maps.empty())
    html +=
        "<h2>KV map over time</h2><p>A colour is a sequence, and a band of it is a run of "
        "blocks. Grey is kept by the prefix cache alone; what is empty is free.</p>"
        "<div class=\"grid\">" +
        maps + "</div>";
  const std::string memory = MemoryCharts(reported);
  if (!memory.empty()) html += "<h2>Memory over time</h2><div class=\"grid\">" + memory + "</div>";
  return html + Configurations(reported) + "</main></body></html>\n";
}

}  // namespace kvrm
