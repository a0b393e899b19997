// SPDX-License-Identifier: Apache-2.0
#include "device/host_device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <system_error>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/result.h"

namespace kvrm {
namespace {

// Mappings of the stacks, heaps and files that come after the pool.
constexpr std::uint64_t kSpareMappings = 512;

// Some 20 to 80 us, as in WorkerTeam: a quarter of a MiB of copies.
constexpr int kSpins = 2000;

std::uint64_t OsPageBytes() {
  return static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint64_t MaxMappings() {
  std::uint64_t limit = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> limit;
  return limit != 0 ? limit : 65530;  // Linux's own default
}

std::uint64_t NumMappings() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<std::uint64_t>(std::count(std::istreambuf_iterator<char>(maps), {}, '\n'));
}

// All the memory there is, in use or not.
std::uint64_t SystemBytes() {
  struct sysinfo info = {};
  if (sysinfo(&info) != 0) return ~std::uint64_t{0};
  return (std::uint64_t{info.totalram} + info.totalswap) * info.mem_unit;
}

void Copy(const CopyOp& copy) {
  for (std::size_t i = 0; i < copy.num_pieces; ++i) {
    std::memcpy(copy.target + i * copy.target_stride, copy.source + i * copy.source_stride,
                copy.bytes);
  }
}

}  // namespace

HostDevice::HostDevice(const HostDeviceOptions& options) : options_(options) {
  if (!options.copy_thread) return;
  try {
    copy_thread_ = std::thread([this] { CopyLoop(); });
  } catch (const std::system_error& error) {
    throw StartError(std::string("the copy thread cannot start: ") + error.what());
  }
}

HostDevice::~HostDevice() {
  if (copy_thread_.joinable()) {
    WaitLayer(kAllLanded - 1);
    quit_ = true;
    num_posted_.fetch_add(1, std::memory_order_release);
    num_posted_.notify_one();
    copy_thread_.join();
  }
  for (const std::span<std::byte> mapping : mappings_)
    CHECK(munmap(mapping.data(), mapping.size()) == 0);
  if (pool_file_ >= 0) CHECK(close(pool_file_) == 0);
}

std::span<std::byte> HostDevice::Adopt(void* memory, std::size_t mapped_bytes) {
  mappings_.emplace_back(static_cast<std::byte*>(memory), mapped_bytes);
  return mappings_.back();
}

void HostDevice::Prepare(std::span<std::byte> memory) const noexcept {
  // A wish, not a need: without huge pages all is as right and a little slower.
  static_cast<void>(madvise(memory.data(), memory.size(), MADV_HUGEPAGE));
  if (!options_.prefault) return;
  const std::uint64_t os_page_bytes = OsPageBytes();
  for (std::size_t offset = 0; offset < memory.size(); offset += os_page_bytes) {
    // A store that the compiler must keep: it is the store that makes the kernel give the page.
    *const_cast<volatile std::byte*>(&memory[offset]) = std::byte{0};
  }
}

std::span<std::byte> HostDevice::Reserve(std::size_t bytes, const char* owner) {
  return ReserveAligned(bytes, OsPageBytes(), owner);
}

std::span<std::byte> HostDevice::ReserveAligned(std::size_t bytes, std::size_t alignment,
                                                const char* owner) {
  CHECK(bytes > 0);
  // Addresses alone cost nothing: the mapping is longer by what finding the alignment may take.
  const auto with_room = CheckedAdd(bytes, alignment - OsPageBytes());
  const std::optional<std::uint64_t> mapped_bytes =
      with_room ? CheckedAlignUp(*with_room, OsPageBytes()) : std::nullopt;
  void* memory = MAP_FAILED;
  int error = ENOMEM;
  if (mapped_bytes) {
    memory =
        mmap(nullptr, *mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    error = errno;
  }
  if (memory == MAP_FAILED) {
    throw StartError("cannot reserve " + std::to_string(bytes) + " bytes for " + owner + ": " +
                     std::strerror(error) + " (" + std::to_string(reserved_bytes()) +
                     " bytes are reserved already)");
  }
  const std::span<std::byte> mapping = Adopt(memory, *mapped_bytes);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % alignment;
  const std::span<std::byte> aligned = mapping.subspan(past == 0 ? 0 : alignment - past);
  Prepare(aligned.first(bytes));
  reservations_.push_back({.owner = owner, .bytes = bytes});
  return aligned.first(bytes);
}

void HostDevice::Populate(std::span<std::byte> units) noexcept {
  // Where the kernel does not know this, or has no memory, the first touch gets what there is.
  static_cast<void>(madvise(units.data(), units.size(), MADV_POPULATE_WRITE));
}

void HostDevice::GiveBack(std::span<std::byte> units) noexcept {
  // Private memory: it reads as zeros afterwards.
  static_cast<void>(madvise(units.data(), units.size(), MADV_DONTNEED));
}

PoolMemory HostDevice::ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                                   std::size_t map_unit) {
  CHECK(CheckedAdd(pool_bytes, window_bytes).has_value());
  if (mapped) return ReserveMappedPool(pool_bytes, window_bytes, map_unit);
  const std::span<std::byte> memory =
      ReserveAligned(pool_bytes + window_bytes, kHugePageBytes,
                     window_bytes > 0 ? "kv pool and windows" : "kv pool");
  return {memory.first(pool_bytes), memory.subspan(pool_bytes)};
}

PoolMemory HostDevice::ReserveMappedPool(std::size_t pool_bytes, std::size_t window_bytes,
                                         std::size_t map_unit) {
  CHECK(pool_file_ < 0 && map_unit > 0);
  CHECK(pool_bytes > 0 && pool_bytes % map_unit == 0 && window_bytes % map_unit == 0);
  const std::uint64_t os_page_bytes = OsPageBytes();
  if (map_unit % os_page_bytes != 0) {
    const std::uint64_t factor = os_page_bytes / std::gcd(os_page_bytes, std::uint64_t{map_unit});
    throw StartError("a mapped pool needs blocks of whole pages of " +
                     std::to_string(os_page_bytes) + " bytes, and a block has " +
                     std::to_string(map_unit) + " bytes: blocks of " + std::to_string(factor) +
                     " times as many tokens, or a multiple of that, would do");
  }
  CheckMappings(window_bytes / map_unit);
  const std::string subject = std::to_string(pool_bytes) + " bytes for a mapped kv pool";
  // The kernel promises a memory file as many bytes as one asks for, and kills whoever touches what
  // is not there.
  if (const std::uint64_t system_bytes = SystemBytes(); pool_bytes > system_bytes) {
    throw StartError("cannot reserve " + subject + ": the system has " +
                     std::to_string(system_bytes) + " bytes (" + std::to_string(reserved_bytes()) +
                     " bytes are reserved already)");
  }
  const auto refuse = [&](const char* call) {
    const int error = errno;
    throw StartError("cannot reserve " + subject + " and " + std::to_string(window_bytes) +
                     " bytes of addresses behind it: " + call + ": " + std::strerror(error) + " (" +
                     std::to_string(reserved_bytes()) + " bytes are reserved already)");
  };
  void* const range = mmap(nullptr, pool_bytes + window_bytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) refuse("mmap");
  const std::span<std::byte> all = Adopt(range, pool_bytes + window_bytes);
  pool_file_ = memfd_create("kvrm-kv-pool", MFD_CLOEXEC);
  if (pool_file_ < 0) refuse("memfd_create");
  if (ftruncate(pool_file_, static_cast<off_t>(pool_bytes)) != 0) refuse("ftruncate");
  if (mmap(range, pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, pool_file_, 0) ==
      MAP_FAILED) {
    refuse("mmap");
  }
  Prepare(all.first(pool_bytes));
  reservations_.push_back({.owner = "kv pool", .bytes = pool_bytes});
  map_unit_ = map_unit;
  mapped_pool_ = {all.first(pool_bytes), all.subspan(pool_bytes)};
  return mapped_pool_;
}

// Every unit of the windows may become a mapping of its own: neighbours are one mapping only where
// they show neighbours.
void HostDevice::CheckMappings(std::uint64_t num_units) const {
  const std::uint64_t limit = options_.max_mappings != 0 ? options_.max_mappings : MaxMappings();
  const std::uint64_t in_use = NumMappings();
  const std::uint64_t needed = in_use + num_units + kSpareMappings;
  if (needed <= limit) return;
  throw StartError("a mapped pool with " + std::to_string(num_units) +
                   " blocks of windows may need as many mappings; with the " +
                   std::to_string(in_use) + " in use and " + std::to_string(kSpareMappings) +
                   " to spare that is " + std::to_string(needed) + ", and the system allows " +
                   std::to_string(limit) +
                   " (vm.max_map_count): raise it, or use larger blocks, fewer sequences or a "
                   "shorter context");
}

bool HostDevice::Map(std::size_t window_offset, std::size_t pool_offset,
                     std::size_t bytes) noexcept {
  CHECK(map_unit_ > 0 && bytes > 0);
  CHECK(window_offset % map_unit_ == 0 && pool_offset % map_unit_ == 0 && bytes % map_unit_ == 0);
  CHECK(window_offset <= mapped_pool_.windows.size() &&
        bytes <= mapped_pool_.windows.size() - window_offset);
  CHECK(pool_offset <= mapped_pool_.pool.size() && bytes <= mapped_pool_.pool.size() - pool_offset);
  std::byte* const window = mapped_pool_.windows.data() + window_offset;
  // Populated at once: the step that reads it pays for no page fault.
  if (mmap(window, bytes, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, pool_file_,
           static_cast<off_t>(pool_offset)) != MAP_FAILED) {
    return true;
  }
  // HAZARD: where the kernel has removed the old mapping before it failed, there is a gap now that
  // anybody's next mapping may be put into, and our next Map would replace that. NOREPLACE leaves
  // alone what is still there.
  static_cast<void>(mmap(window, bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0));
  return false;
}

FlightId HostDevice::Submit(std::span<const CopyOp> copies) noexcept {
  WaitLayer(kAllLanded - 1);
  std::size_t num_made = 0;
  for (; num_made < copies.size(); ++num_made) {
    if (options_.copy_thread && copies[num_made].before_layer > 0) break;
    Copy(copies[num_made]);
  }
  pending_ = copies.subspan(num_made);
  if (!pending_.empty()) {
    landed_before_.store(1, std::memory_order_relaxed);
    num_posted_.fetch_add(1, std::memory_order_release);
    num_posted_.notify_one();
  }
  return FlightId{++num_flights_};
}

void HostDevice::CopyLoop() noexcept {
  for (std::uint32_t seen = 0;;) {
    num_posted_.wait(seen, std::memory_order_acquire);
    seen = num_posted_.load(std::memory_order_acquire);
    if (quit_) return;
    std::uint32_t before = 1;
    for (const CopyOp& copy : pending_) {
      CHECK(copy.before_layer >= before);
      if (copy.before_layer > before) {
        before = copy.before_layer;
        landed_before_.store(before, std::memory_order_release);
        landed_before_.notify_all();
      }
      Copy(copy);
    }
    landed_before_.store(kAllLanded, std::memory_order_release);
    landed_before_.notify_all();
  }
}

bool HostDevice::Landed(FlightId flight) noexcept {
  CHECK(static_cast<std::uint64_t>(flight) <= num_flights_);
  return static_cast<std::uint64_t>(flight) < num_flights_ ||
         landed_before_.load(std::memory_order_acquire) == kAllLanded;
}

void HostDevice::Wait(FlightId flight) noexcept {
  CHECK(static_cast<std::uint64_t>(flight) <= num_flights_);
  if (static_cast<std::uint64_t>(flight) == num_flights_) WaitLayer(kAllLanded - 1);
}

void HostDevice::WaitLayer(std::uint32_t layer) noexcept {
  std::uint32_t landed = landed_before_.load(std::memory_order_acquire);
  for (int i = 0; i < kSpins && landed <= layer; ++i) {
    __builtin_ia32_pause();
    landed = landed_before_.load(std::memory_order_acquire);
  }
  // The copy thread may need this very core.
  while (landed <= layer) {
    landed_before_.wait(landed, std::memory_order_acquire);
    landed = landed_before_.load(std::memory_order_acquire);
  }
}

std::uint64_t HostDevice::reserved_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const Reservation& reservation : reservations_)
    sum += reservation.bytes;
  return sum;
}

}  // namespace kvrm
