// SPDX-License-Identifier: Apache-2.0
#include "server/choice_text.h"

#include <iterator>
#include <utility>

namespace kvrm {
namespace {

void Move(OutputDelta delta, TextPart* part) {
  part->content += delta.content;
  part->reasoning += delta.reasoning;
  std::move(delta.calls.begin(), delta.calls.end(), std::back_inserter(part->calls));
}

}  // namespace

ChoiceText::ChoiceText(TextStream stream, const ChoiceTextOptions& options)
    : stream_(std::move(stream)), matcher_(options.stop, options.include_stop) {
  // Channels tell what is thought from the rest; there the parser of calls does both.
  const bool has_channels = options.tools && options.tools->format == ToolFormat::kHarmony;
  if (options.split_reasoning && !has_channels) reasoning_.emplace(options.starts_in_reasoning);
  if (!options.tools) return;
  ToolParserOptions tools = *options.tools;
  tools.split_reasoning = options.split_reasoning;
  tools.starts_in_reasoning = options.starts_in_reasoning;
  tools_.emplace(std::move(tools));
}

TextPart ChoiceText::Push(std::int32_t token) {
  TextPart part;
  if (stopped()) return part;
  Add(matcher_.Push(stream_(token)), &part);
  if (stopped()) End(&part);
  return part;
}

TextPart ChoiceText::Finish() {
  TextPart part;
  if (stopped()) return part;
  Add(matcher_.Push(stream_(std::nullopt)), &part);
  if (!stopped()) Add(matcher_.Finish(), &part);
  End(&part);
  return part;
}

void ChoiceText::Add(std::string_view text, TextPart* part) {
  if (!reasoning_) return AddAnswer(text, part);
  const ReasoningSplitter::Parts parts = reasoning_->Push(text);
  part->reasoning += parts.reasoning;
  AddAnswer(parts.content, part);
}

void ChoiceText::AddAnswer(std::string_view text, TextPart* part) {
  if (tools_)
    Move(tools_->Push(text), part);
  else
    part->content += text;
}

// What the later stages held back.
void ChoiceText::End(TextPart* part) {
  if (reasoning_) {
    const ReasoningSplitter::Parts parts = reasoning_->Finish();
    part->reasoning += parts.reasoning;
    AddAnswer(parts.content, part);
  }
  if (tools_) Move(tools_->Finish(), part);
}

}  // namespace kvrm
