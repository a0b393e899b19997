// SPDX-License-Identifier: Apache-2.0
// RecordingPort: an engine's port whose traffic a TraceWriter sees (kvrm serve --record-trace).
//
// Threading: as EnginePort; everything recorded happens on the I/O thread.
#pragma once

#include "base/clock.h"
#include "server/ports.h"
#include "trace/trace_writer.h"

namespace kvrm {

// The same port; every request and every token that pass through it are noted. Of several samples
// of one prompt the first is. `writer` and `clock` outlive the port.
EnginePort Recording(EnginePort port, TraceWriter& writer, const Clock& clock);

}  // namespace kvrm
