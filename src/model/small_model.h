// SPDX-License-Identifier: Apache-2.0
// The smallest whole models for tests: one layer, as GGUF and as the files of a Hugging Face
// folder.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/gguf_writer.h"

namespace kvrm {

inline constexpr std::uint32_t kSmallVocab = 8;

// Rows of 32 elements in Q4_0, all of scale 0 unless `fill` says otherwise.
inline std::string Q4Rows(std::uint64_t rows, char fill = '\0') {
  return std::string(rows * 18, fill);
}

// A llama model: hidden 32, 2 heads of 16 over 1, feed-forward 32, 8 tokens.
inline GgufWriter SmallLlama() {
  GgufWriter w;
  w.AddString("general.architecture", "llama");
  w.AddString("general.name", "small");
  w.AddUint("llama.context_length", 64);
  w.AddUint("llama.embedding_length", 32);
  w.AddUint("llama.block_count", 1);
  w.AddUint("llama.feed_forward_length", 32);
  w.AddUint("llama.attention.head_count", 2);
  w.AddUint("llama.attention.head_count_kv", 1);
  w.AddFloat("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.AddUint("llama.rope.dimension_count", 16);
  w.AddFloat("llama.rope.freq_base", 10000.0f);
  w.AddString("tokenizer.ggml.model", "llama");
  w.AddStrings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "\xe2\x96\x81", "a", "b", "ab",
                                         "\xe2\x96\x81"
                                         "ab"});
  w.AddArray<float>("tokenizer.ggml.scores", GgufType::kFloat32, {0, 0, 0, -1, -2, -3, -4, -5});
  w.AddArray<std::int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, {2, 3, 3, 1, 1, 1, 1, 1});
  w.AddUint("tokenizer.ggml.bos_token_id", 1);
  w.AddUint("tokenizer.ggml.eos_token_id", 2);
  w.AddUint("tokenizer.ggml.unknown_token_id", 0);
  const std::string norm(32 * sizeof(float), '\0');
  w.tensors = {
      {"token_embd.weight", 2, {32, kSmallVocab}, Q4Rows(kSmallVocab), 0, false},
      {"output_norm.weight", 0, {32}, norm, 0, false},
      {"blk.0.attn_norm.weight", 0, {32}, norm, 0, false},
      {"blk.0.attn_q.weight", 2, {32, 32}, Q4Rows(32), 0, false},
      {"blk.0.attn_k.weight", 2, {32, 16}, Q4Rows(16), 0, false},
      {"blk.0.attn_v.weight", 2, {32, 16}, Q4Rows(16), 0, false},
      {"blk.0.attn_output.weight", 2, {32, 32}, Q4Rows(32), 0, false},
      {"blk.0.ffn_norm.weight", 0, {32}, norm, 0, false},
      {"blk.0.ffn_gate.weight", 2, {32, 32}, Q4Rows(32), 0, false},
      {"blk.0.ffn_up.weight", 2, {32, 32}, Q4Rows(32), 0, false},
      {"blk.0.ffn_down.weight", 2, {32, 32}, Q4Rows(32), 0, false},
  };
  return w;
}

// Builds a safetensors image: entries in order, offsets running on.
class SafetensorsWriter {
 public:
  void Add(const std::string& name, const std::string& dtype, const std::string& shape,
           std::string data) {
    const std::size_t begin = data_.size();
    data_ += data;
    entries_.push_back("\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
                       ",\"data_offsets\":[" + std::to_string(begin) + "," +
                       std::to_string(data_.size()) + "]}");
  }
  // One more entry of the header as text.
  void AddText(std::string entry) { entries_.push_back(std::move(entry)); }
  std::string Header() const {
    std::string header = "{";
    for (const std::string& entry : entries_)
      header += (header.size() > 1 ? "," : "") + entry;
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    return header;
  }
  std::string Build() const { return Assemble(Header(), data_); }
  const std::string& data() const { return data_; }

  static std::string Assemble(const std::string& header, const std::string& data) {
    return GgufWriter::Raw<std::uint64_t>(header.size()) + header + data;
  }

 private:
  std::vector<std::string> entries_;
  std::string data_;
};

// The same model as SmallLlama in BF16, its norms too, with an output of its own.
inline SafetensorsWriter SmallLlamaTensors(const std::string& prefix = "model.") {
  SafetensorsWriter w;
  const auto matrix = [&w](const std::string& name, std::size_t rows) {
    w.Add(name, "BF16", "[" + std::to_string(rows) + ",32]", std::string(rows * 32 * 2, '\0'));
  };
  const auto norm = [&w](const std::string& name) {
    w.Add(name, "BF16", "[32]", std::string(32 * 2, '\x3f'));
  };
  const std::string layer = prefix + "layers.0.";
  matrix("lm_head.weight", kSmallVocab);
  matrix(prefix + "embed_tokens.weight", kSmallVocab);
  norm(layer + "input_layernorm.weight");
  matrix(layer + "mlp.down_proj.weight", 32);
  matrix(layer + "mlp.gate_proj.weight", 32);
  matrix(layer + "mlp.up_proj.weight", 32);
  norm(layer + "post_attention_layernorm.weight");
  matrix(layer + "self_attn.k_proj.weight", 16);
  matrix(layer + "self_attn.o_proj.weight", 32);
  matrix(layer + "self_attn.q_proj.weight", 32);
  matrix(layer + "self_attn.v_proj.weight", 16);
  norm(prefix + "norm.weight");
  w.AddText("\"__metadata__\":{\"format\":\"pt\"}");
  return w;
}

// config.json of that model, as pairs to edit: name and JSON text of the value.
using JsonFieldTexts = std::vector<std::pair<std::string, std::string>>;
inline JsonFieldTexts SmallLlamaConfig() {
  return {{"architectures", "[\"LlamaForCausalLM\"]"},
          {"hidden_act", "\"silu\""},
          {"hidden_size", "32"},
          {"intermediate_size", "32"},
          {"max_position_embeddings", "64"},
          {"num_attention_heads", "2"},
          {"num_hidden_layers", "1"},
          {"num_key_value_heads", "1"},
          {"rms_norm_eps", "1e-05"},
          {"rope_scaling", "null"},
          {"rope_theta", "10000.0"},
          {"tie_word_embeddings", "false"},
          {"vocab_size", "8"}};
}
inline std::string JsonObject(const JsonFieldTexts& fields) {
  std::string out = "{";
  for (const auto& [name, text] : fields)
    out += (out.size() > 1 ? "," : "") + ("\"" + name + "\":" + text);
  return out + "}";
}
inline std::string WithField(JsonFieldTexts fields, const std::string& name,
                             const std::string& text) {
  for (auto& field : fields) {
    if (field.first == name) {
      field.second = text;
      return JsonObject(fields);
    }
  }
  fields.emplace_back(name, text);
  return JsonObject(fields);
}

inline std::string SmallTokenizerJson() {
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)"
         R"({"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true},)"
         R"({"id":1,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true},)"
         R"({"id":2,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true}],)"
         R"("normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},)"
         R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,)"
         R"("post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace",)"
         R"("pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},)"
         R"({"type":"Strip","content":" ","start":1,"stop":0}]},)"
         R"("model":{"type":"BPE","dropout":null,"unk_token":"<unk>",)"
         R"("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,)"
         R"("byte_fallback":true,"vocab":{"<unk>":0,"<s>":1,"</s>":2,"▁":3,"a":4,"b":5,"ab":6,)"
         R"("▁ab":7},"merges":["a b","▁ ab"]}})";
}
inline std::string SmallTokenizerConfig() {
  return R"({"add_bos_token":true,"add_eos_token":false,"bos_token":"<s>","eos_token":"</s>",)"
         R"("unk_token":"<unk>","tokenizer_class":"LlamaTokenizer",)"
         R"("chat_template":"{{ messages }}"})";
}

}  // namespace kvrm
