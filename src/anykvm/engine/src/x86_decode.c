/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the translator needs to know of an instruction that Unicorn's does not look at: is it undefined here (VEX without
 * AVX, LOCK where it may not be), must its operand be aligned, does it compute with SSE. Encodings as in the Intel
 * manual, volume 2, appendix A.
 */
#include "x86.h"

#define LONGEST 15 /* bytes of an instruction */
#define MOD(modrm) ((modrm) >> 6)
#define REG(modrm) ((modrm) >> 3 & 7)

uint32_t __real_cpu_ldub_code_x86_64(void *env, uint64_t va);

struct code {
    void *env;
    uint64_t at;
    bool quiet; /* what cannot be read is zero, and `lost` is set; else it faults as a fetch does */
    bool lost;
};

/* A byte of an instruction that runs; 0 where its page is not in the TLB any more. */
static uint8_t running(struct code *code)
{
    bool user = (FIELD(code->env, X86_HFLAGS, uint32_t) & X86_HF_CPL) == 3;
    uint8_t *at = tlb_vaddr_to_host_x86_64(code->env, code->at++, ACCESS_FETCH, user ? X86_MMU_USER : X86_MMU_KERNEL);

    code->lost |= !at;
    return at ? *at : 0;
}

static uint8_t next(struct code *code)
{
    return code->quiet ? running(code) : (uint8_t)__real_cpu_ldub_code_x86_64(code->env, code->at++);
}

/* BMI's instructions are VEX encoded and need no AVX: maps 0F38 and 0F3A, 128 bits. */
static bool is_bmi(struct code *code, uint8_t first)
{
    int map = first & 0x1f;
    uint8_t second, op;

    if (map != 2 && map != 3)
        return false;
    second = next(code);
    op = next(code);
    return !(second & 4) &&
           (map == 3 ? op == 0xf0 : op == 0xf2 || op == 0xf3 || op == 0xf5 || op == 0xf6 || op == 0xf7);
}

/* LOCK goes with these and a destination in memory (volume 2, LOCK). */
static bool lockable(struct code *code, uint8_t op)
{
    bool two = op == 0x0f;
    uint8_t modrm;
    int reg;

    if (two)
        op = next(code);
    modrm = next(code);
    reg = REG(modrm);
    if (MOD(modrm) == 3)
        return false;
    if (two)
        return op == 0xab || op == 0xb3 || op == 0xbb || op == 0xb0 || op == 0xb1 || op == 0xc0 || op == 0xc1 ||
               (op == 0xba && reg >= 5) || (op == 0xc7 && reg == 1);
    if (op < 0x38)
        return (op & 7) < 2;
    switch (op) {
    case 0x80: case 0x81: case 0x82: case 0x83:
        return reg != 7;
    case 0x86: case 0x87:
        return true;
    case 0xf6: case 0xf7:
        return reg == 2 || reg == 3;
    case 0xfe: case 0xff:
        return reg < 2;
    default:
        return false;
    }
}

/* Of the instructions 0F op: one whose operand of 16 bytes in memory must be aligned. */
static bool aligned_0f(uint8_t op, uint8_t prefix)
{
    switch (op) {
    case 0x14: case 0x15: case 0x28: case 0x29: case 0x2b: case 0x51: case 0x54 ... 0x59: case 0x5b ... 0x5f:
    case 0xc2: case 0xc6:
        return !prefix || prefix == 0x66 || op == 0x5b;
    case 0x52: case 0x53:
        return !prefix;
    case 0x7c: case 0x7d: case 0xd0: case 0xe6:
        return prefix == 0x66 || prefix == 0xf2;
    case 0x70:
        return prefix;
    case 0x5a: case 0x60 ... 0x6d: case 0x6f: case 0x74 ... 0x76: case 0x7f: case 0xd1 ... 0xd5: case 0xd8 ... 0xe5:
    case 0xe7 ... 0xef: case 0xf1 ... 0xf6: case 0xf8 ... 0xfe:
        return prefix == 0x66;
    default:
        return false;
    }
}

/* The same of 66 0F38 op. */
static bool aligned_0f38(uint8_t op)
{
    switch (op) {
    case 0x00 ... 0x0b: case 0x10: case 0x14: case 0x15: case 0x17: case 0x1c ... 0x1e: case 0x28 ... 0x2b:
    case 0x37 ... 0x41: case 0xdb ... 0xdf:
        return true;
    default:
        return false;
    }
}

/* The same of 66 0F3A op. */
static bool aligned_0f3a(uint8_t op)
{
    switch (op) {
    case 0x08: case 0x09: case 0x0c ... 0x0f: case 0x40 ... 0x42: case 0x44: case 0xdf:
        return true;
    default:
        return false;
    }
}

/* Of the instructions 0F op: one that computes with SSE, and may raise a floating-point exception. */
static bool sse_0f(uint8_t op)
{
    switch (op) {
    case 0x2a: case 0x2c ... 0x2f: case 0x51: case 0x58 ... 0x5f: case 0x7c: case 0x7d: case 0xc2: case 0xd0: case 0xe6:
        return true;
    default:
        return false;
    }
}

static void two_bytes(struct code *code, uint8_t prefix, struct x86_insn *out)
{
    uint8_t op = next(code);

    if (op == 0x38) {
        out->aligned = prefix == 0x66 && aligned_0f38(next(code));
    } else if (op == 0x3a && prefix == 0x66) {
        op = next(code);
        out->aligned = aligned_0f3a(op);
        out->sse = (op >= 0x08 && op <= 0x0b) || op == 0x40 || op == 0x41;
    } else if (op == 0xae) {
        uint8_t modrm = next(code);

        out->uses_mxcsr = !prefix && MOD(modrm) != 3 && REG(modrm) != 2 && REG(modrm) != 7;
    } else {
        out->aligned = aligned_0f(op, prefix);
        out->sse = sse_0f(op);
    }
}

/* Looks at the instruction at a linear address, as far as its kind needs it. Faults as a fetch does. */
void x86_decode(void *env, uint64_t va, bool code64, struct x86_insn *out)
{
    struct code code = {env, va, false, false};
    bool lock = false;
    uint8_t op, prefix = 0;

    *out = (struct x86_insn){.segment = -1};
    for (;;) {
        op = next(&code);
        if (code.at - va == LONGEST)
            return;
        if (op == 0xf0)
            lock = true;
        else if (op == 0xf2 || op == 0xf3)
            prefix = op;
        else if (op == 0x66)
            out->data16 = true;
        else if (op != 0x26 && op != 0x2e && op != 0x36 && op != 0x3e && op != 0x64 && op != 0x65 && op != 0x67 &&
                 !(code64 && (op & 0xf0) == 0x40))
            break;
    }
    if (!prefix && out->data16)
        prefix = 0x66;
    if (op == 0xc4 || op == 0xc5) {
        uint8_t first = next(&code);

        if (code64 || first >= 0xc0) {
            out->undefined = lock || op == 0xc5 || !is_bmi(&code, first);
            return;
        }
    }
    if (lock)
        out->undefined = !lockable(&code, op);
    else if (op == 0x0f)
        two_bytes(&code, prefix, out);
}

/* Does the instruction at this linear address, which runs, read its destination in memory and write it? */
bool x86_modifies(void *env, uint64_t va, bool code64)
{
    struct code code = {env, va, true, false};
    uint8_t op, modrm;
    bool yes;

    do
        op = next(&code);
    while (code.at - va < LONGEST && (op == 0xf0 || op == 0xf2 || op == 0xf3 || op == 0x66 || op == 0x26 || op == 0x2e ||
                                      op == 0x36 || op == 0x3e || op == 0x64 || op == 0x65 || op == 0x67 ||
                                      (code64 && (op & 0xf0) == 0x40)));
    if (op == 0xc0 || op == 0xc1 || (op >= 0xd0 && op <= 0xd3)) {
        yes = MOD(next(&code)) != 3;
    } else {
        struct code second = code;

        yes = lockable(&code, op);
        op = op == 0x0f ? next(&second) : 0;
        modrm = next(&second);
        if (op == 0xa4 || op == 0xa5 || op == 0xac || op == 0xad)
            yes = MOD(modrm) != 3;
        code.lost |= second.lost;
    }
    return yes && !code.lost;
}

/* Does the 64-bit instruction at this address load from the stack segment, or store to it? */
bool x86_uses_stack(void *env, uint64_t va, bool store)
{
    struct code code = {env, va, true, false};
    uint8_t op, modrm, rex = 0;

    while (code.at - va < LONGEST) {
        op = running(&code);
        if (op == 0x64 || op == 0x65)
            return false; /* an address in FS or GS */
        if ((op & 0xf0) == 0x40)
            rex = op;
        else if (op != 0xf0 && op != 0xf2 && op != 0xf3 && op != 0x66 && op != 0x67 && op != 0x26 && op != 0x2e &&
                 op != 0x36 && op != 0x3e)
            break;
    }
    switch (op) {
    case 0x50 ... 0x5f: case 0x68: case 0x6a: case 0x9c: case 0x9d: case 0xc2: case 0xc3: case 0xc8 ... 0xcb: case 0xcf:
    case 0xe8:
        return true;
    case 0x6c ... 0x6f: case 0xa0 ... 0xa7: case 0xaa ... 0xaf: case 0xd7:
        return false;
    case 0x0f:
        op = running(&code);
        if (op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9)
            return true;
        if (op == 0x38 || op == 0x3a)
            running(&code);
        modrm = running(&code);
        break;
    default:
        modrm = running(&code);
        if ((op == 0x8f && !store) || (op == 0xff && store && REG(modrm) >= 2))
            return true;
    }
    if ((modrm & 7) == 5 && MOD(modrm))
        return !(rex & 1);
    if ((modrm & 7) != 4)
        return false;
    modrm = running(&code) & 7; /* the base */
    return !(rex & 1) && (modrm == 4 || (modrm == 5 && MOD(running(&(struct code){env, code.at - 2, true, false}))));
}
