// SPDX-License-Identifier: Apache-2.0
#include "replay/log_histogram.h"

#include <utility>

#include "base/check.h"

namespace kvrm {

double LogHistogram::Middle(std::uint32_t bucket) {
  if (bucket >> kBits == 0) return bucket;
  const std::uint32_t shift = (bucket >> kBits) - 1;
  const std::uint64_t first = std::uint64_t{(1u << kBits) + (bucket & ((1u << kBits) - 1))}
                              << shift;
  return static_cast<double>(first) + static_cast<double>((std::uint64_t{1} << shift) - 1) / 2.0;
}

bool LogHistogram::Restore(std::vector<std::uint64_t> counts, const Totals& totals) {
  std::uint64_t count = 0;
  for (const std::uint64_t each : counts)
    count += each;
  const bool ends_in_max = counts.empty()
                               ? totals.max == 0
                               : counts.back() > 0 && BucketOf(totals.max) + 1 == counts.size();
  if (!ends_in_max || !(totals.sum >= 0.0 && totals.squares >= 0.0)) return false;
  counts_ = std::move(counts);
  count_ = count;
  sum_ = totals.sum;
  squares_ = totals.squares;
  max_ = totals.max;
  return true;
}

double LogHistogram::ValueAt(std::uint64_t rank) const {
  std::uint64_t seen = 0;
  for (std::uint32_t bucket = 0; bucket < counts_.size(); ++bucket) {
    seen += counts_[bucket];
    if (seen > rank) return std::min(Middle(bucket), static_cast<double>(max_));
  }
  return static_cast<double>(max_);
}

double LogHistogram::Quantile(double share) const {
  CHECK(count_ > 0 && share >= 0.0 && share <= 1.0);
  const double place = share * static_cast<double>(count_ - 1);
  const auto below = static_cast<std::uint64_t>(place);
  const double low = ValueAt(below);
  const double high = ValueAt(std::min(below + 1, count_ - 1));
  return low + (place - static_cast<double>(below)) * (high - low);
}

}  // namespace kvrm
