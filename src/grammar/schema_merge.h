// SPDX-License-Identifier: Apache-2.0
// Merging of JSON schemas: one schema that asks for what two ask for.
//
// Threading: one thread. Memory: copies are counted; beyond the limit merging fails.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace kvrm::grammar {

constexpr std::uint32_t kMaxSchemaDepth = 32;
constexpr std::uint32_t kMaxSchemaNodes = 4096;

// What this project knows of a keyword.
enum class Keyword : std::uint8_t {
  kAsserts,      // decides what is valid, and is understood
  kUnsupported,  // decides what is valid, and is not
  kSaysNothing,  // annotations, definitions, and words that no one has defined
};
Keyword KeywordOf(std::string_view name);

// Whether the schema has a keyword that decides what is valid.
bool Asserts(const json::object& schema);

class SchemaMerger {
 public:
  explicit SchemaMerger(const json::value& root) : root_(root) {}

  // Where a local $ref leads. Errors: kInvalidArgument, kUnsupported (of another document).
  Result<const json::value*> Resolve(std::string_view ref) const;

  // `schema` without $ref and allOf at its top: what they ask for is merged into the rest.
  Result<json::object> Flatten(const json::value& schema, std::uint32_t depth = 0);
  // Asks for what both ask for. Neither has $ref or allOf at its top.
  Result<json::object> Merge(json::object a, const json::object& b);

 private:
  Status MergeKeyword(json::object& to, const json::object& from, std::string_view name);
  Status MergeObjects(json::object& to, const json::object& from);
  bool Spend(const json::value& copied);

  const json::value& root_;
  std::uint64_t num_copied_ = 0;
};

}  // namespace kvrm::grammar
