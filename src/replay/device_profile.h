// SPDX-License-Identifier: Apache-2.0
// DeviceProfile: what a step costs on a device that is not here, and an executor that costs so much
// virtual time and computes nothing.
//
//   step = step_us + rows * row_us + tokens * token_us + tokens_us(tokens)
//          + attended bytes * kv_byte_ns + prompt pairs * pair_ns + moved bytes * move_byte_ns
//          + copies * group_us + mappings * map_us
//
// tokens_us is linear between its points and beyond its last two: a matrix product's rate depends
// on how many tokens share the reading of a weight.
//
// With a spread the step takes this times a factor that is drawn anew for each step, whatever it
// does: a machine's steps of one kind are not all alike.
//
// Attended bytes are those of every row's whole history, padding included, once a row and step;
// prompt pairs are those of a prompt's token and a position that it attends. What a row's own token
// costs when it is written twice (staged) is not counted. The engine, its
// scheduler, cache and transport are the real ones; only time and tokens are made up.
//
// Threading: one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "device/device.h"
#include "engine/engine.h"
#include "engine/parts.h"
#include "replay/step_probe.h"
#include "sim/sim_clock.h"

namespace kvrm {

// Strictly ascending tokens; us do not descend.
struct TokensPoint {
  double tokens = 0.0;
  double us = 0.0;
};

// So large a share of the steps takes at most `factor` times what is said above.
struct SpreadPoint {
  double share = 0.0;
  double factor = 1.0;
};

struct DeviceProfile {
  std::string name = "example";
  double step_us = 200.0;
  double row_us = 20.0;
  double token_us = 20.0;
  double kv_byte_ns = 0.0001;  // 10 GB/s
  double pair_ns = 0.0;
  double move_byte_ns = 0.0001;
  double group_us = 0.0;
  double map_us = 0.0;
  // For the size of layer buffers: two of num_layers layers of a window.
  std::uint32_t num_layers = 1;
  // It can read contiguous windows only: no extents, paged or mapped view.
  bool dense_only = false;
  std::uint32_t kv_token_bytes = 65536;  // all layers, K and V; rounded down to a multiple of 8
  std::uint32_t max_context = 32768;
  std::vector<TokensPoint> tokens_us = {};  // at most kMaxTokensPoints; empty: nothing
  // From share 0 to share 1, which ascend strictly, and factors do not descend; linear in between.
  // At most kMaxTokensPoints; empty: all steps of one kind are alike.
  std::vector<SpreadPoint> spread = {};
};
inline constexpr std::size_t kMaxTokensPoints = 64;

// A JSON object with the members above, all of them optional but for the name (docs/formats.md).
// The error names the field and the limit.
Result<DeviceProfile> ParseDeviceProfile(std::string_view text);

// The same as text, with its line feed.
std::string DeviceProfileJson(const DeviceProfile& profile);

double TokensUs(const DeviceProfile& profile, double tokens);

// The factor that a share of the steps stays below; 1 without a spread. Requires: 0 <= share <= 1.
double SpreadFactor(const DeviceProfile& profile, double share);

// Those that come with the program, by name: example, a100, h200, gh200, npu. Models, not
// measurements; the npu is made up.
std::optional<DeviceProfile> FindDeviceProfile(std::string_view name);

// Whether the device can read what the view shows.
bool CanShow(const DeviceProfile& profile, KvView view);

// Without the spread.
std::int64_t StepCostNs(const DeviceProfile& profile, const StepProbe& step,
                        std::uint64_t bytes_scale);

// As small as the sampler's statistics are: 16 of its ids are 112 bits, and nobody looks at logits.
inline constexpr std::uint32_t kProfileVocab = 128;
// How many bytes of the device one byte of the simulated pool stands for.
std::uint64_t ProfileBytesScale(const DeviceProfile& profile);
// The arguments outlive the engine that is made of them. The device keeps the small pool. `seed` is
// of what the spread draws.
EngineParts ProfileParts(const DeviceProfile& profile, Device& device, StepProbe* probe,
                         SimClock* clock, std::uint64_t seed = 1);

}  // namespace kvrm
