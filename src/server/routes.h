// SPDX-License-Identifier: Apache-2.0
// Routes: one table of what exists, which methods it takes and whether it needs a key.
//
// A new route is closed by default (H3); route and key are decided from the same parsed path (H2).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kvrm {

enum class RouteId : std::uint8_t {
  kHealth,
  kVersion,
  kLedger,
  kMetrics,
  kModels,
  kModel,  // "/v1/models/NAME"
  kChat,
  kCompletion,
  kEmbeddings,
  kTokenize,
  kDetokenize,
  kApplyTemplate,
  kCountTokens,
  kProps,
  kSlots,
};

struct Route {
  std::string_view path;
  RouteId id;
  bool is_post = true;  // else GET and HEAD
  bool is_public = false;
};

std::span<const Route> AllRoutes();
// nullptr: there is no such path.
const Route* FindRoute(std::string_view path);
// The NAME in "/v1/models/NAME", percent signs decoded; nullopt when malformed.
std::optional<std::string> ModelNameOf(std::string_view path);

}  // namespace kvrm
