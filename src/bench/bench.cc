// SPDX-License-Identifier: Apache-2.0
#include "bench/bench.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include "base/result.h"
#include "base/system_memory.h"

namespace kvrm {
namespace {

// Boost.JSON writes 1.704E1.
std::string Number(const json::value& value) {
  if (!value.is_double()) return json::serialize(value);
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), value.get_double(),
                                          std::chars_format::general, 6);
  return error == std::errc() ? std::string(buffer, end) : std::string();
}

std::string Cell(const json::value& value) {
  if (value.is_string()) return std::string(value.get_string().data(), value.get_string().size());
  return Number(value);
}

// Remembers the names of the last line and the widths of its columns.
class Table {
 public:
  explicit Table(std::function<void(const std::string&)> write) : write_(std::move(write)) {}

  void Add(const json::object& line) {
    std::vector<std::string> names;
    std::vector<std::string> cells;
    for (const auto& [name, value] : line) {
      names.emplace_back(name.data(), name.size());
      cells.push_back(Cell(value));
    }
    if (names != names_) {
      names_ = names;
      widths_.assign(names.size(), 0);
      Widen(cells);
      Widen(names);
      write_("\n" + Row(names));
    }
    Widen(cells);
    write_(Row(cells));
  }

 private:
  void Widen(const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i)
      widths_[i] = std::max(widths_[i], cells[i].size());
  }
  std::string Row(const std::vector<std::string>& cells) const {
    std::string row;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) row += "  ";
      row += cells[i];
      if (i + 1 < cells.size()) row.append(widths_[i] - cells[i].size(), ' ');
    }
    return row + "\n";
  }

  const std::function<void(const std::string&)> write_;
  std::vector<std::string> names_;
  std::vector<std::size_t> widths_;
};

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

std::uint32_t CheckBenchOptions(const BenchOptions& options) {
  if (options.num_workers > kMaxBenchWorkers) {
    throw StartError("--workers must be at most " + std::to_string(kMaxBenchWorkers) + ", not " +
                     std::to_string(options.num_workers));
  }
  if (options.repetitions == 0 || options.repetitions > kMaxRepetitions) {
    throw StartError("--repetitions must be between 1 and " + std::to_string(kMaxRepetitions) +
                     ", not " + std::to_string(options.repetitions));
  }
  return options.num_workers != 0 ? options.num_workers
                                  : std::max(1u, std::thread::hardware_concurrency());
}

const CpuKernels& BenchKernels(const BenchOptions& options) {
  if (options.kernels.empty()) return SelectCpuKernels();
  const CpuKernels* kernels = FindCpuKernels(options.kernels.c_str());
  if (kernels == nullptr) {
    throw StartError("--kernels '" + options.kernels +
                     "' are unknown or not supported by this processor");
  }
  return *kernels;
}

BenchSink JsonLines(std::function<void(const std::string& text)> write) {
  return [write = std::move(write)](const json::object& line) {
    std::string text;
    for (const auto& [name, value] : line) {
      text += text.empty() ? "{" : ",";
      text += json::serialize(json::string(name)) + ":" + Number(value);
    }
    write(text + "}\n");
  };
}

BenchSink TextTable(std::function<void(const std::string& text)> write) {
  return [table = Table(std::move(write))](const json::object& line) mutable { table.Add(line); };
}

double LeastSeconds(const Clock& clock, std::uint32_t passes, std::uint64_t count,
                    const std::function<void(std::uint64_t)>& run) {
  std::vector<std::int64_t> least_ns(count, std::numeric_limits<std::int64_t>::max());
  for (std::uint32_t pass = 0; pass < passes; ++pass) {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::int64_t begin_ns = clock.NowNs();
      run(i);
      least_ns[i] = std::min(least_ns[i], clock.NowNs() - begin_ns);
    }
  }
  std::int64_t sum_ns = 0;
  for (const std::int64_t ns : least_ns)
    sum_ns += ns;
  // A clock that did not advance would make a rate that is not finite.
  return static_cast<double>(std::max<std::int64_t>(sum_ns, 1)) * 1e-9;
}

std::vector<std::uint32_t> ParseCounts(std::string_view flag, std::string_view text,
                                       std::uint32_t max) {
  std::vector<std::uint32_t> counts;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    std::uint32_t count = 0;
    const std::from_chars_result result = std::from_chars(at, end, count);
    if (result.ec != std::errc() || count == 0 || count > max ||
        (result.ptr != end && *result.ptr != ',')) {
      throw StartError(std::string(flag) + " must be numbers from 1 to " + std::to_string(max) +
                       " with commas between them, not '" + std::string(text.substr(0, 40)) + "'");
    }
    counts.push_back(count);
    if (result.ptr == end) return counts;
    at = result.ptr + 1;
  }
}

DType ParseDType(std::string_view flag, std::string_view text) {
  std::string names;
  for (int i = 0; i < kNumDTypes; ++i) {
    const std::string name = Lower(DTypeName(static_cast<DType>(i)));
    if (name == Lower(text)) return static_cast<DType>(i);
    names += (i > 0 ? ", " : "") + name;
  }
  throw StartError(std::string(flag) + " '" + std::string(text.substr(0, 40)) + "' is none of " +
                   names);
}

void CheckMemory(std::string_view owner, std::uint64_t bytes) {
  const std::uint64_t available = AvailableMemoryBytes();
  if (bytes <= available) return;
  throw StartError(std::string(owner) + " needs " + std::to_string(bytes) + " bytes, and " +
                   std::to_string(available) + " bytes of memory are available");
}

double Rounded(double value, int digits) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double scale =
      std::pow(10.0, digits - 1 - static_cast<int>(std::floor(std::log10(std::fabs(value)))));
  return std::round(value * scale) / scale;
}

}  // namespace kvrm
