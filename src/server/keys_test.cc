// SPDX-License-Identifier: Apache-2.0
#include "server/keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/result.h"

namespace kvrm {
namespace {

TEST(KeySet, FindsAKeysPlaceAndNothingElse) {
  const std::vector<std::string> keys = {"first", "second", "first", "third"};
  const KeySet set(keys);
  EXPECT_EQ(set.size(), 3u);
  EXPECT_EQ(set.Find("first"), 0u);
  EXPECT_EQ(set.Find("second"), 1u);
  EXPECT_EQ(set.Find("third"), 2u);
  for (const char* other : {"", "firs", "firstt", "First", "first\n", "fourth"})
    EXPECT_FALSE(set.Find(other)) << other;
  EXPECT_FALSE(KeySet({}).Find(""));
}

TEST(KeySet, RefusesKeysThatNoHeaderCanCarry) {
  for (const std::string& key : {std::string(), std::string("two words"), std::string("line\n"),
                                 std::string("caf\xc3\xa9"), std::string(513, 'k')}) {
    EXPECT_THROW(KeySet({&key, 1}), StartError) << key;
  }
}

TEST(KeyFile, IsReadWhenOthersMayNot) {
  const std::string path = testing::TempDir() + "/kvrm_keys_test" + std::to_string(::getpid());
  ASSERT_TRUE(WriteFile(path, "# clients\nalpha\r\n\n  \nbeta \ngamma").has_value());
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(ReadKeyFile(path), (std::vector<std::string>{"alpha", "beta", "gamma"}));
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  EXPECT_EQ(ReadKeyFile(path).size(), 3u);
  for (const mode_t mode : {0644u, 0602u, 0660u, 0601u}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    EXPECT_THROW(ReadKeyFile(path), StartError) << std::oct << mode;
  }
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  ASSERT_TRUE(WriteFile(path, "# none\n").has_value());
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  EXPECT_THROW(ReadKeyFile(path), StartError);
  EXPECT_THROW(ReadKeyFile(path + ".absent"), StartError);
}

TEST(PresentedKey, ComesFromEitherField) {
  EXPECT_EQ(PresentedKey("Bearer a", ""), "a");
  EXPECT_EQ(PresentedKey("", "b"), "b");
  EXPECT_EQ(PresentedKey("Basic abc", "b"), "b");
  EXPECT_EQ(PresentedKey("Bearer ", "b"), "");
}

}  // namespace
}  // namespace kvrm
