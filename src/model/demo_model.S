/* SPDX-License-Identifier: Apache-2.0 */
/* The demo model inside the program: the bytes of models/kvrm-demo.gguf, read-only. The build */
/* defines KVRM_DEMO_MODEL as its path. */
        .section .rodata
        .balign 64
        .globl kvrm_demo_model_begin
        .type kvrm_demo_model_begin, @object
kvrm_demo_model_begin:
        .incbin KVRM_DEMO_MODEL
        .globl kvrm_demo_model_end
        .type kvrm_demo_model_end, @object
kvrm_demo_model_end:
        .byte 0
        .size kvrm_demo_model_begin, kvrm_demo_model_end - kvrm_demo_model_begin
        .section .note.GNU-stack, "", @progbits
