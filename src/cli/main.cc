// SPDX-License-Identifier: Apache-2.0
// kvrm: one binary, one subcommand each. The only place that catches what start-up throws.
#include <cstdio>
#include <exception>
#include <new>

#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"

namespace {

bool HasCommand(const CLI::App& app, const char* name) {
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->check_name(name)) return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("KVRM: serves large language models over a paged KV cache beneath a static graph",
               "kvrm");
  app.require_subcommand(1);
  app.set_version_flag("--version", "kvrm 0.1.0");
  app.get_formatter()->column_width(34);
  kvrm::AddServeCommand(app);
  kvrm::AddRunCommand(app);
  kvrm::AddInspectCommand(app);
  kvrm::AddVerifyCommand(app);
  kvrm::AddTokenizeCommands(app);
  kvrm::AddLogitsCommand(app);
  kvrm::AddPerplexityCommand(app);
  kvrm::AddSimCommand(app);
  kvrm::AddBenchCommand(app);
  kvrm::AddReplayCommand(app);
  kvrm::AddCompareCommand(app);
  kvrm::AddReportCommand(app);
  kvrm::AddRecordCommand(app);
  kvrm::InstallMappedFileGuard();
  if (argc > 1 && argv[1][0] != '-' && !HasCommand(app, argv[1])) {
    std::fprintf(stderr, "kvrm: unknown command '%s'; kvrm --help lists them\n", argv[1]);
    return 2;
  }
  try {
    app.parse(argc, argv);
    // What was printed may still have to be written, to a disk that is full, say.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw kvrm::StartError("cannot write standard output");
    }
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const kvrm::StartError& error) {
    std::fprintf(stderr, "kvrm: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "kvrm: out of memory\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvrm: unexpected: %s\n", error.what());
    return 70;
  }
  return 0;
}
