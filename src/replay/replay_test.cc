// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "replay/completion_chunk.h"
#include "replay/driver.h"
#include "replay/http_client.h"
#include "replay/http_reply.h"
#include "replay/metrics.h"
#include "replay/record.h"
#include "replay/report.h"
#include "replay/url_target.h"

namespace kvrm {
namespace {

constexpr std::int64_t kMs = 1'000'000;

RecordHeader Header() {
  return {.target = "engine",
          .clock = "virtual",
          .command = "kvrm replay --workload \"a\"",
          .workload = "mixed",
          .seed = ~std::uint64_t{0},
          .num_requests = 2,
          .offered_rps = 2.5,
          .phases = {{"warm-up", 0}, {"quiet", 10 * kMs}, {"burst", 100 * kMs}},
          .config = {{"view", "extents"}}};
}

RequestRecord OneRequest() {
  return {.request = 7,
          .group = "victim",
          .arrival_ns = 1 * kMs,
          .sent_ns = 2 * kMs,
          .end_ns = 34 * kMs,
          .prompt_tokens = 100,
          .asked_tokens = 4,
          .output_tokens = 4,
          .cached_tokens = 16,
          .finish = "length",
          .gaps_ns = {20 * kMs, 2 * kMs, 4 * kMs, 6 * kMs}};
}

std::string WholeText() {
  return RecordLine(Header()) + RecordLine(OneRequest()) +
         RecordLine(StepRecord{1 * kMs, 2 * kMs, 3, 4, 5, 6, 300, 200, 100}) +
         RecordLine(StepRecord{4 * kMs, 8 * kMs, 3, 4, 5, 6, 300, 200, 100}) +
         RecordLine(MemoryRecord{9, 1, 2, 3, 4}) +
         "{\"end\":40000000,\"requests\":1,\"steps\":2}\n";
}

TEST(Record, WhatIsWrittenIsRead) {
  const Result<Record> record = ParseRecord(WholeText());
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_TRUE(record->complete);
  EXPECT_EQ(RecordLine(record->header), RecordLine(Header()));
  ASSERT_EQ(record->requests.size(), 1u);
  EXPECT_EQ(RecordLine(record->requests[0]), RecordLine(OneRequest()));
  ASSERT_EQ(record->steps.size(), 2u);
  EXPECT_EQ(record->steps[1].ns, 8 * kMs);
  EXPECT_EQ(record->steps[1].live_bytes, 100u);
  ASSERT_EQ(record->memory.size(), 1u);
  EXPECT_EQ(record->memory[0].resident_bytes, 4u);
}

TEST(Record, EveryCutGivesARecordThatSaysSo) {
  const std::string text = WholeText();
  const std::size_t head = RecordLine(Header()).size();
  for (std::size_t size = 0; size < text.size(); ++size) {
    const Result<Record> record = ParseRecord(text.substr(0, size));
    ASSERT_EQ(record.has_value(), size >= head) << size;
    if (record) {
      EXPECT_FALSE(record->complete) << size;
    }
  }
}

TEST(Record, NamesLineAndFieldOfWhatIsWrong) {
  const auto error = [](const std::string& line) {
    const Result<Record> record = ParseRecord(RecordLine(Header()) + line + "\n");
    return record ? "none" : record.error().message;
  };
  EXPECT_EQ(error(R"({"step":[1,2]})"), "line 2: step is no array of 9");
  EXPECT_EQ(error(R"({"step":[1,2,3,4,5,6,7,8,-1]})"),
            "line 2: step is no whole number from 0 to 4611686018427387904");
  EXPECT_EQ(error(R"({"request":1})"), "line 2: group is no string");
  EXPECT_EQ(error(R"({"end":1,"requests":1,"steps":0})"),
            "line 2: requests is not how many there are");
  EXPECT_EQ(error("{}"), "line 2: end is missing");
  EXPECT_EQ(error("{\"end\":1,\"requests\":0,\"steps\":0}\n{\"end\":1}"),
            "line 3: end is not the last line");
  EXPECT_EQ(ParseRecord("{\"kvrm_record\":3}\n").error().message,
            "line 1: kvrm_record is not version 1 or 2");
}

std::string SummedText() {
  RecordHeader header = Header();
  header.num_replicas = 2;
  RecordSummary summary;
  summary.replicas.resize(2);
  summary.Add({1 * kMs, 2 * kMs, 3, 4, 5, 6, 300, 200, 100});
  summary.Add({4 * kMs, 8 * kMs, 3, 4, 5, 6, 300, 200, 100, /*replica=*/1});
  for (const std::int64_t ms : {2, 4, 6})
    summary.itl_ns.Add(static_cast<std::uint64_t>(ms * kMs));
  return RecordLine(header) + SummaryLine(OneRequest()) + RecordLines(summary) +
         "{\"end\":40000000,\"requests\":1,\"steps\":2}\n";
}

TEST(Record, ASummaryThatIsWrittenIsRead) {
  const Result<Record> record = ParseRecord(SummedText());
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_TRUE(record->complete);
  ASSERT_EQ(record->requests.size(), 1u);
  EXPECT_EQ(record->requests[0].outputs().count, 4u);
  EXPECT_EQ(record->requests[0].outputs().first_ns, 20 * kMs);
  EXPECT_EQ(record->requests[0].outputs().last_ns, 32 * kMs);
  EXPECT_EQ(RecordLine(record->header) + SummaryLine(record->requests[0]) +
                RecordLines(*record->summary) + "{\"end\":40000000,\"requests\":1,\"steps\":2}\n",
            SummedText());
}

TEST(Record, NamesWhatIsWrongWithASummary) {
  RecordHeader header = Header();
  header.num_replicas = 2;
  const auto error = [&header](const std::string& line) {
    const Result<Record> record = ParseRecord(RecordLine(header) + line + "\n");
    return record ? "none" : record.error().message;
  };
  const std::string histogram = R"({"histogram":"itl","sum":3,"squares":5,"max":2,"counts":)";
  EXPECT_EQ(error(histogram + "[1,1,2,1]}"), "none");
  EXPECT_EQ(error(histogram + "[2,1,1,1]}"),
            "line 2: counts are no buckets in order, each with a count");
  EXPECT_EQ(error(histogram + "[1]}"), "line 2: counts are no buckets in order, each with a count");
  EXPECT_EQ(error(histogram + "[1,1]}"), "line 2: counts do not end in the bucket of max");
  EXPECT_EQ(error(R"({"histogram":"x","sum":0,"squares":0,"max":0,"counts":[]})"),
            "line 2: histogram is neither itl nor step");
  EXPECT_EQ(error(R"({"histogram":"itl","sum":-1,"squares":0,"max":0,"counts":[]})"),
            "line 2: sum is no sum of whole numbers up to 1e60");
  EXPECT_EQ(error(R"({"replica":[1,0,0,0,0,0,0,0,0,0,0,0],"reserved":0,"mapped":0,"live":0})"),
            "line 2: replica is not the next one");
  EXPECT_EQ(error(R"({"end":1,"requests":0,"steps":0})"),
            "line 2: replica has not as many lines as there are");
}

TEST(LogHistogram, EveryValueLiesInItsBucketAndTheMiddleIsNear) {
  for (std::uint64_t value = 1; value < std::uint64_t{1} << 61; value += value / 37 + 1) {
    const std::uint32_t bucket = LogHistogram::BucketOf(value);
    ASSERT_LT(bucket, LogHistogram::kMaxBuckets);
    const double off = std::abs(LogHistogram::Middle(bucket) - static_cast<double>(value));
    ASSERT_LE(off, static_cast<double>(value) / 512.0) << value;
    ASSERT_LE(LogHistogram::BucketOf(value - 1), bucket);
  }
}

TEST(Metrics, AreThoseOfTheDefinitions) {
  const Result<Record> record = ParseRecord(WholeText());
  ASSERT_TRUE(record);
  const Metrics m = Measure(*record, {.ttft_ms = 20.0, .tpot_ms = 3.0});
  EXPECT_DOUBLE_EQ(m.ttft_ms.p50, 20.0);
  EXPECT_DOUBLE_EQ(m.e2el_ms.max, 32.0);
  EXPECT_DOUBLE_EQ(m.tpot_ms.mean, 4.0);
  EXPECT_EQ(m.itl_ms.count, 3u);
  EXPECT_DOUBLE_EQ(m.itl_ms.p50, 4.0);
  EXPECT_DOUBLE_EQ(m.itl_ms.p99, 4.0 + 0.98 * 2.0);
  EXPECT_DOUBLE_EQ(m.send_lag_ms.mean, 1.0);
  EXPECT_DOUBLE_EQ(m.duration_s, 0.032);
  EXPECT_DOUBLE_EQ(m.output_throughput, 4 / 0.032);
  EXPECT_DOUBLE_EQ(m.request_goodput, 0.0);  // its TPOT is over the limit
  EXPECT_DOUBLE_EQ(m.steps.ms.p50, 5.0);
  EXPECT_DOUBLE_EQ(m.steps.cv, 0.6);
  EXPECT_EQ(m.steps.num_spikes, 0u);
  EXPECT_DOUBLE_EQ(m.memory.reserved_over_live, 3.0);
  // Of the gaps that end in a phase: the first output has none.
  ASSERT_EQ(m.phases.size(), 3u);
  EXPECT_EQ(m.phases[0].itl.count, 0u);
  EXPECT_EQ(m.phases[1].itl.count, 3u);
  EXPECT_DOUBLE_EQ(m.phases[1].max_ratio, 1.5);
}

TEST(Metrics, ASpikeIsMoreThanThreeMedians) {
  Record record;
  for (const int ms : {2, 2, 2, 2, 6, 7})
    record.steps.push_back({.ns = ms * kMs});
  const StepMetrics steps = Measure(record, {}).steps;
  EXPECT_EQ(steps.num_spikes, 1u);
  EXPECT_DOUBLE_EQ(steps.spike_area, 5.0 / 21.0);
}

TEST(Metrics, WarmUpFailuresAndCancelledRequestsAreKeptApart) {
  Record record;
  RequestRecord request = OneRequest();
  record.requests.push_back(request);
  request.warmup = true;
  record.requests.push_back(request);
  request.warmup = false;
  request.finish = "error";
  record.requests.push_back(request);
  request.finish = "cancelled";
  record.requests.push_back(request);
  const Metrics m = Measure(record, {});
  EXPECT_EQ(m.completed, 1u);
  EXPECT_EQ(m.warmup, 1u);
  EXPECT_EQ(m.failed, 1u);
  EXPECT_EQ(m.cancelled, 1u);
  EXPECT_EQ(m.ttft_ms.count, 1u);
  EXPECT_EQ(m.itl_ms.count, 6u);
  EXPECT_EQ(m.output_tokens, 8u);
}

TEST(Report, NamesEscapeIntoThePage) {
  Record record = ParseRecord(WholeText()).value();
  record.header.target = "<script>&";
  const ReportedRecord reported = {"a<b", &record, Measure(record, {})};
  const std::string html = ReportHtml({&reported, 1});
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_NE(html.find("&lt;script>&amp;"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);  // nothing is loaded from elsewhere
  EXPECT_NE(ReportText(reported).find("Successful requests"), std::string::npos);
}

// The numbers under the chart of this title.
std::vector<double> TicksUnder(const std::string& html, const std::string& title) {
  std::vector<double> ticks;
  const std::size_t begin = html.find("<h3>" + title);
  std::string_view chart = std::string_view(html).substr(begin, html.find("</g>", begin) - begin);
  static constexpr std::string_view kMark = "text-anchor=\"middle\">";
  for (std::size_t at = chart.find(kMark); at != std::string_view::npos; at = chart.find(kMark)) {
    chart.remove_prefix(at + kMark.size());
    ticks.push_back(std::stod(std::string(chart.substr(0, chart.find('<')))));
  }
  return ticks;
}

TEST(Report, EveryLogarithmicAxisHasNumbers) {
  const std::vector<std::pair<double, double>> ranges_ms = {
      {5.1, 5.9},   {1.2, 9.9},       {12.0, 19.0}, {0.9, 11.0},
      {0.3, 700.0}, {0.002, 90000.0}, {4.0, 4.0}};
  for (const auto& [low, high] : ranges_ms) {
    Record record;
    RequestRecord request = OneRequest();
    request.gaps_ns = {kMs, std::int64_t(low * kMs), std::int64_t(high * kMs)};
    record.requests.push_back(request);
    const ReportedRecord reported = {"r", &record, Measure(record, {})};
    const std::vector<double> ticks = TicksUnder(ReportHtml({&reported, 1}), "Inter-token latency");
    EXPECT_GE(ticks.size(), 3u) << low << " to " << high;
    EXPECT_LE(ticks.size(), 10u) << low << " to " << high;
    for (const double tick : ticks) {
      EXPECT_GE(tick, low);
      EXPECT_LE(tick, std::max(high, 2.0 * low));
    }
  }
}

// Logarithms have no zero to begin at, and numbers far from it have no neighbours a tick away.
TEST(Report, EveryAxisEnds) {
  constexpr std::int64_t kFarNs = std::int64_t{9'000'000'000'000'000'000};
  Record record;
  RequestRecord request = OneRequest();
  request.gaps_ns = {0, 0, 0};
  record.requests.push_back(request);
  for (const std::int64_t at_ns : {kFarNs, kFarNs + 2000}) {
    StepRecord step;
    step.at_ns = at_ns;
    step.ns = kMs;
    record.steps.push_back(step);
  }
  const ReportedRecord reported = {"r", &record, Measure(record, {})};
  const std::string html = ReportHtml({&reported, 1});
  EXPECT_GE(TicksUnder(html, "Inter-token latency").size(), 3u);
  EXPECT_LE(TicksUnder(html, "Inter-token latency").size(), 10u);
  EXPECT_LE(TicksUnder(html, "Step time").size(), 7u);
}

struct Reply {
  std::string error;
  int status = 0;
  std::string body;
  bool whole = false;
};

Reply ReadReply(std::string_view bytes, std::size_t piece) {
  Reply result;
  HttpReply reply;
  for (; !bytes.empty() && result.error.empty();
       bytes.remove_prefix(std::min(piece, bytes.size()))) {
    const Status fed = reply.Feed(bytes.substr(0, piece),
                                  [&result](std::string_view body) { result.body += body; });
    if (!fed) result.error = fed.error().message;
  }
  result.status = reply.status();
  result.whole = reply.Close();
  return result;
}

TEST(HttpReply, ReadsEveryFramingInAnyPieces) {
  const std::string chunked =
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: 1\r\n\r\n";
  const std::string counted = "HTTP/1.1 404 Not Found\r\ncontent-length: 11\r\n\r\nhello world";
  const std::string closed = "HTTP/1.0 200 OK\r\n\r\nhello world";
  const std::string informed = "HTTP/1.1 100 Continue\r\n\r\n" + chunked;
  for (std::size_t piece = 1; piece < 40; ++piece) {
    for (const std::string& text : {chunked, counted, closed, informed}) {
      const Reply reply = ReadReply(text, piece);
      EXPECT_EQ(reply.error, "");
      EXPECT_EQ(reply.body, "hello world");
      EXPECT_EQ(reply.status, text == counted ? 404 : 200);
      EXPECT_TRUE(reply.whole);
    }
  }
}

TEST(HttpReply, ACutResponseIsNotWhole) {
  EXPECT_FALSE(ReadReply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", 100).whole);
  EXPECT_FALSE(
      ReadReply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 100).whole);
  EXPECT_FALSE(ReadReply("HTTP/1.1 200 OK\r\n", 100).whole);
}

TEST(HttpReply, RefusesWhatIsNoResponse) {
  for (const char* text :
       {"hello\r\n\r\n", "HTTP/1.\n\n", "HTTP/1.1 99 x\r\n\r\n", "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "HTTP/1.1 200 OK\r\nname\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n"}) {
    EXPECT_NE(ReadReply(text, 1000).error, "") << text;
  }
}

TEST(SseParser, JoinsDataLinesAndSkipsComments) {
  std::vector<std::string> events;
  SseParser sse;
  for (const char c : std::string(": hi\n\ndata: a\r\n\r\nevent: x\rdata:b\rdata\r\rdata: cut"))
    ASSERT_TRUE(sse.Feed({&c, 1}, [&events](std::string_view e) { events.emplace_back(e); }));
  EXPECT_EQ(events, (std::vector<std::string>{"a", "b\n"}));
}

TEST(CompletionChunk, KnowsOutputFromRolesAndReasons) {
  const auto has = [](const char* choice) {
    return ParseCompletionChunk("{\"choices\":[" + std::string(choice) + "]}").has_output;
  };
  EXPECT_TRUE(has(R"({"index":0,"text":"a","finish_reason":null})"));
  EXPECT_TRUE(has(R"({"index":0,"text":"","finish_reason":null})"));
  EXPECT_FALSE(has(R"({"index":0,"text":"","finish_reason":"length"})"));
  EXPECT_TRUE(has(R"({"index":0,"text":"a","finish_reason":"length"})"));
  EXPECT_FALSE(has(R"({"index":1,"text":"a","finish_reason":null})"));
  EXPECT_FALSE(has(R"({"index":0,"delta":{"role":"assistant","content":""}})"));
  EXPECT_TRUE(has(R"({"index":0,"delta":{"content":"a"},"finish_reason":null})"));
  EXPECT_FALSE(has(R"({"index":0,"delta":{},"finish_reason":"stop"})"));
  const CompletionChunk usage = ParseCompletionChunk(
      R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,
          "prompt_tokens_details":{"cached_tokens":4}}})");
  EXPECT_TRUE(usage.has_usage);
  EXPECT_EQ(usage.prompt_tokens, 5u);
  EXPECT_EQ(usage.output_tokens, 6u);
  EXPECT_EQ(usage.cached_tokens, 4u);
  EXPECT_TRUE(ParseCompletionChunk("[DONE]").done);
  EXPECT_EQ(ParseCompletionChunk(R"({"error":{"message":"no"}})").error, "no");
  EXPECT_NE(ParseCompletionChunk("{").error, "");
}

TEST(HttpUrl, IsTakenApart) {
  const HttpUrl plain = ParseUrl("http://localhost:8080/v1/");
  EXPECT_EQ(plain.host + " " + plain.port + " " + plain.path, "localhost 8080 /v1");
  const HttpUrl six = ParseUrl("http://[::1]:9");
  EXPECT_EQ(six.host + " " + six.port, "::1 9");
  EXPECT_EQ(ParseUrl("http://a").port, "80");
  for (const char* bad : {"https://a", "a:80", "http://", "http://a:", "http://a:x"})
    EXPECT_THROW(ParseUrl(bad), StartError) << bad;
}

// What a run asks for, in order, when every request takes `service_ns`.
std::vector<std::pair<std::size_t, std::int64_t>> Timeline(const Workload& workload,
                                                           const ReplayOptions& options,
                                                           std::int64_t service_ns) {
  RecordWriter writer("", {});
  ReplayRun run(workload, options, writer);
  std::vector<std::pair<std::size_t, std::int64_t>> begun;
  std::vector<std::pair<std::int64_t, std::size_t>> ends;
  std::int64_t now_ns = 0;
  while (!run.done()) {
    while (const std::optional<std::size_t> request = run.TakeDue(now_ns)) {
      begun.emplace_back(*request, now_ns);
      ends.emplace_back(now_ns + service_ns, *request);
    }
    if (run.ShouldCancel(now_ns)) {
      for (const std::size_t request : run.running())
        run.OnEnd(request, now_ns, {.finish = "cancelled"});
      ends.clear();
      continue;
    }
    if (run.done()) break;  // What was due came too late.
    std::int64_t next_ns = run.NextDue();
    if (!ends.empty()) next_ns = std::min(next_ns, ends.front().first);
    if (options.stop_ns > 0) next_ns = std::min(next_ns, options.stop_ns);
    if (workload.closed_until_ns > now_ns) next_ns = std::min(next_ns, workload.closed_until_ns);
    EXPECT_NE(next_ns, kNever);
    now_ns = std::max(now_ns, next_ns);
    while (!ends.empty() && ends.front().first <= now_ns) {
      run.OnOutput(ends.front().second, now_ns);
      run.OnEnd(ends.front().second, now_ns, {.output_tokens = 1});
      ends.erase(ends.begin());
    }
  }
  return begun;
}

using Begun = std::vector<std::pair<std::size_t, std::int64_t>>;

TEST(ReplayRun, ClosedClientsTakeTurnsAndThink) {
  Workload workload;
  workload.num_clients = 2;
  for (int i = 0; i < 4; ++i)
    workload.requests.push_back({.arrival_ns = i, .arrival = Arrival::kClosed});
  EXPECT_EQ(Timeline(workload, {}, 10), (Begun{{0, 0}, {1, 1}, {2, 12}, {3, 14}}));
}

TEST(ReplayRun, TheNextTurnFollowsTheEndOfTheLast) {
  Workload workload;
  workload.requests = {{.arrival_ns = 5},
                       {.arrival_ns = 7, .arrival = Arrival::kAfter, .after = 0},
                       {.arrival_ns = 20}};
  EXPECT_EQ(Timeline(workload, {}, 10), (Begun{{0, 5}, {2, 20}, {1, 22}}));
}

Workload TwoConversations() {
  Workload workload;
  workload.num_clients = 1;
  workload.requests = {{.arrival = Arrival::kClosed},
                       {.arrival_ns = 7, .arrival = Arrival::kAfter, .after = 0},
                       {.arrival = Arrival::kClosed},
                       {.arrival_ns = 3, .arrival = Arrival::kAfter, .after = 2},
                       {.arrival_ns = 3, .arrival = Arrival::kAfter, .after = 3}};
  return workload;
}

TEST(ReplayRun, AClientIsFreeWhenItsConversationIsOver) {
  EXPECT_EQ(Timeline(TwoConversations(), {}, 10),
            (Begun{{0, 0}, {1, 17}, {2, 27}, {3, 40}, {4, 53}}));
}

TEST(ReplayRun, AConversationEndsWithTheClosedLoop) {
  for (const std::int64_t until_ns : {5, 12, 20, 30, 38, 41, 51, 60}) {
    SCOPED_TRACE(until_ns);
    Workload workload = TwoConversations();
    workload.closed_until_ns = until_ns;
    for (const auto& [request, at_ns] : Timeline(workload, {}, 10))
      EXPECT_LT(at_ns, until_ns) << request;
  }
}

TEST(ReplayRun, AClosedLoopEndsAtItsTimeAndWhatRunsIsCancelled) {
  Workload workload;
  workload.num_clients = 1;
  workload.closed_until_ns = 25;
  for (int i = 0; i < 9; ++i)
    workload.requests.push_back({.arrival = Arrival::kClosed});
  EXPECT_EQ(Timeline(workload, {}, 10), (Begun{{0, 0}, {1, 10}, {2, 20}}));
}

TEST(ReplayRun, StopsAtItsLimit) {
  Workload workload;
  workload.requests = {{.arrival_ns = 5}, {.arrival_ns = 50}, {.arrival_ns = 60}};
  EXPECT_EQ(Timeline(workload, {.stop_ns = 55}, 10), (Begun{{0, 5}, {1, 50}}));
}

TEST(UrlTarget, ReadsALedger) {
  MemoryRecord memory;
  std::uint64_t pool_tokens = 0;
  EXPECT_TRUE(ParseLedger(R"({"tiers":[{"reserved_bytes":300,"mapped_bytes":200,"live_bytes":100,
                              "blocks":{"total":12}}]})",
                          &memory, &pool_tokens));
  EXPECT_EQ(memory.live_bytes, 100u);
  EXPECT_EQ(pool_tokens, 192u);
  EXPECT_FALSE(ParseLedger("{}", &memory, &pool_tokens));
  EXPECT_FALSE(ParseLedger("<html>", &memory, &pool_tokens));
}

}  // namespace
}  // namespace kvrm
