/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the pinned Unicorn (2.1.4, 64-bit Linux hosts) keeps what the engine touches.
 *
 * The wheel ships a static archive and public headers only; these offsets describe the structures behind them. They
 * hold for exactly one version: layout_verify() checks them against the public register API before anything runs, and
 * the module refuses to load when one is wrong.
 */
#ifndef ANYKVM_LAYOUT_H
#define ANYKVM_LAYOUT_H

#define UNICORN_MAJOR 2
#define UNICORN_MINOR 1
#define UNICORN_PATCH 4

/* struct uc_struct */
#define UC_STOP_INTERRUPT 224 /* which exceptions end emulation: none may */
#define UC_MEMORY_MAPPING 288 /* function: physical address -> region */
#define UC_CPU 440
#define UC_IO_UNASSIGNED 480 /* the region of every hole in the memory map */
#define UC_TCG_CTX 768
#define UC_INVALID_ERROR 1424
#define UC_SIZE_RECUR_MEM 1384
#define UC_THREAD_DATA 1976 /* unused on Linux: our struct cpu */
#define UC_PAGE_SIZE 1984
#define UC_NO_EXIT_REQUEST 2034
#define UC_NESTED_LEVEL 14840

/* MemoryRegion, MemoryRegionOps */
#define MR_OPS 16
#define MR_PERMS 136

/* CPUState */
#define CS_EXIT_REQUEST 21
#define CS_CFLAGS_NEXT 24
#define CS_STOP 17
#define CS_STOPPED 18
#define CS_INTERRUPT_REQUEST 28
#define CS_ENV 296
#define CS_JMP_CACHE 312 /* Unicorn's cache of blocks by virtual address */
#define CS_ICOUNT_DECR 304
#define CS_HALTED 33176
#define CS_EXCEPTION_INDEX 33184
#define CS_UC 33192
#define CS_CLASS 33200

/* CPUClass */
#define CC_HAS_WORK 8
#define CC_UNALIGNED 24
#define CC_EXEC_INTERRUPT 144

/* DisasContextBase, TranslatorOps */
#define DC_PC_NEXT 16
#define TRANSLATE_INSN 4 /* which of the functions, of TRANSLATOR_OPS */
#define TRANSLATOR_OPS 7

/* TranslationBlock, TCGContext */
#define TB_PC 0
#define TB_FLAGS 16
#define TB_SIZE 20
#define TB_CFLAGS 24
#define TB_CODE 32 /* the translated code */
#define TB_PAGES 72 /* its two places in RAM, by page; ~0: on one page only */
#define TCG_NB_OPS 56 /* int: from TCG_MANY_OPS on a block ends with the instruction */
#define TCG_MANY_OPS 4000
#define TCG_TB_CFLAGS 100

#define TCG_OP_SET_LABEL 1
#define TCG_OP_LD_I32 13
#define TCG_TYPE_I32 0
#define TCG_COND_LT 2
#define TCG_CALL_NO_RWG 1
#define TCG_ARG1_64BIT 4 /* sizemask */
#define TCG_ARG2_64BIT 16
#define MO_SIZE 3u
#define MO_ALIGN 0x70u /* to its size */
#define MO_ALIGN_16 0x40u
#define TB_EXIT_REQUESTED 3

/* The software TLB: one {mask, table} pair per MMU mode, 64-byte entries. */
#define TLB_ENTRY_BITS 6
#define TLBE_READ 0
#define TLBE_WRITE 8
#define TLBE_CODE 16
#define TLBE_ADDEND 32

/* What the TLB knows of itself, per MMU mode. */
#define TLBD_USED 32
#define TLBD_VICTIMS 48
#define TLB_VICTIMS 8

/* What never differs between targets. */
#define CF_PARALLEL 0x80000u
#define CF_INVALID 0x40000u
#define CF_ALONE (1u | 0x8000u) /* one instruction, not chained to the next */
#define CF_SINGLE 1u /* one instruction */
#define EXCP_INTERRUPT 0x10000
#define EXCP_HLT 0x10001
#define EXCP_DEBUG 0x10002
#define EXCP_HALTED 0x10003
#define EXCP_YIELD 0x10004
#define EXCP_ATOMIC 0x10005
#define INTERRUPT_HARD 0x0002
#define INTERRUPT_FIQ 0x0010
#define ACCESS_LOAD 0
#define ACCESS_STORE 1
#define ACCESS_FETCH 2
#define PAGE_READ 1
#define PAGE_WRITE 2
#define PAGE_EXEC 4
#define MEMTX_OK 0
#define MEMTX_DECODE_ERROR 2

/* aarch64 */
#define A64_TCG_HELPERS 43232
#define A64_TCG_CPU_ENV 43248
#define A64_TCG_UC 43376
#define A64_ENV 41808
#define A64_NEG 33216
#define A64_TLB_FAST 8384 /* within NEG */
#define A64_ICOUNT_DECR 8576  /* within NEG */
#define A64_CLASS 55128
#define A64_TLB_INVALID 0x200ul
#define A64_TLB_NOTDIRTY 0x100ul
#define A64_TLB_MMIO 0x080ul

#define A64_XREGS 64
#define A64_PC 320
#define A64_ELR_EL 568
#define A64_SP_EL 600
#define A64_EXC_SYNDROME 3024
#define A64_VMPIDR 2832
#define A64_ENV_UC 12728

#define A64_CP_REGS 54544     /* within ARMCPU */

#define A64_BARRIER_MASK 0xfffff0ffu
#define A64_DSB 0xd503309fu

#define A64_EXCP_HVC 11
#define A64_EXCP_SMC 13

/* ARMCPRegInfo: how one system register is described. */
struct a64_cpreg {
    const char *name;
    uint8_t cp, crn, crm, opc0, opc1, opc2;
    int state, type, access, secure;
    void *opaque;
    uint64_t resetvalue;
    int64_t fieldoffset, bank_fieldoffsets[2];
    void *accessfn;
    uint64_t (*readfn)(void *env, const struct a64_cpreg *ri);
    void (*writefn)(void *env, const struct a64_cpreg *ri, uint64_t value);
    void *raw_readfn, *raw_writefn, *resetfn, *orig_readfn, *orig_writefn;
};
#define CPREG_STATE_AA64 1
#define CPREG_KEY (1u << 28 | 0x13u << 16) /* AArch64, guest-visible */
#define CPREG_SPECIAL 0x0001
#define CPREG_CONST 0x0002
#define CPREG_OVERRIDE 0x0010
#define CPREG_NO_RAW 0x0080
#define CPREG_RAISES_EXC 0x8000
#define CPREG_PL1_RW 0xfc
#define CPREG_PL1_R 0xa8
#define CPREG_PL1_W 0x54
#define CPREG_PL0_W 0x55

/* x86_64 */
#define X86_TCG_HELPERS 39136
#define X86_TCG_CPU_ENV 39152
#define X86_TCG_SEG_BASE 39768 /* the six segments' bases, as temporaries */
#define X86_TCG_UC 39280
#define X86_ENV 35408
#define X86_NEG 33216
#define X86_TLB_FAST 2128    /* within NEG */
#define X86_TLB_DESC(mode) (32 + 696 * (mode)) /* within NEG */
#define X86_ICOUNT_DECR 2176 /* within NEG */
#define X86_CLASS 42768
#define X86_MMU_MODES 3
#define X86_ALL_MODES ((1u << X86_MMU_MODES) - 1)
#define X86_MMU_SMAP 0 /* supervisor, which SMAP keeps from user pages */
#define X86_MMU_USER 1
#define X86_MMU_KERNEL 2
#define X86_TLB_INVALID 0x800ul
#define X86_TLB_NOTDIRTY 0x400ul
#define X86_TLB_MMIO 0x200ul

#define X86_REGS 0
#define X86_EIP 128
#define X86_EFLAGS 136
#define X86_CC_SRC 152
#define X86_CC_OP 168
#define X86_DF 172
#define X86_HFLAGS 176
#define X86_HFLAGS2 180
#define X86_SEGS 184
#define X86_CR 424
#define X86_EFER 592
#define X86_FPUC 610
#define X86_FP_STATUS 776  /* float_status, as FLOAT_* below */
#define X86_SSE_STATUS 808
#define X86_MXCSR 816
#define X86_SYSENTER_CS 4800
#define X86_SYSENTER_ESP 4808
#define X86_SYSENTER_EIP 4816
#define X86_STAR 4824
#define X86_LSTAR 4840
#define X86_CSTAR 4848
#define X86_FMASK 4856
#define X86_TSC_AUX 4896
#define X86_ERROR_CODE 5384
#define X86_EXC_IS_INT 5388
#define X86_DR 5400
#define X86_OLD_EXCEPTION 5496
#define X86_V_TPR 5556
#define X86_ENV_UC 7000

#define X86_IDT 9 /* the number of the segment it would be */
#define X86_KERNEL_MODE 2 /* MMU mode */
#define X86_DR6_BS 0x4000u
#define X86_HF_CPL 0x3u
#define X86_HF_INHIBIT_IRQ 0x8u
#define X86_HF_CS32 0x10u
#define X86_HF_ADDSEG 0x40u
#define X86_HF_PE 0x80u
#define X86_HF_LMA 0x4000u
#define X86_HF_CS64 0x8000u
#define X86_HF_SMM 0x80000u
#define X86_HF_GUEST 0x200000u
#define X86_HF_SMAP 0x800000u
#define X86_HF_AM 0x08000000u /* ours, as the next: alignment is checked at ring 3 if EFLAGS.AC is set too */
#define X86_HF_LIMITS_DATA 0x10000000u /* ES, CS, SS or DS is not flat */
#define X86_HF_LIMITS_FS 0x20000000u
#define X86_HF_LIMITS_GS 0x40000000u
#define X86_HF_LIMITS 0x70000000u
#define X86_HF_XM 0x80000000u /* an SSE exception is not masked */
#define X86_EFLAGS_RF 0x10000u
#define X86_EFLAGS_AC 0x40000u
#define X86_TB_EFLAGS 0x73100u /* of EFLAGS, what a block is translated for */
#define X86_HF2_NMI 0x4u
#define X86_CC_OP_EFLAGS 1

#define FLOAT_FLAGS 2 /* exceptions so far, numbered as in MXCSR but for the denormals */
#define FLOAT_FLUSH_TO_ZERO 4

struct x86_segment {
    uint32_t selector, pad;
    uint64_t base;
    uint32_t limit, flags;
};

#define FIELD(base, offset, type) (*(__typeof__(type) *)((char *)(base) + (offset)))

#endif
