# SPDX-License-Identifier: GPL-2.0-only
"""Asks the C compiler what the kernel's headers say, for every constant and structure of a uapi module."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

Facts = dict[str, int]

# Fields younger than the oldest headers we build with (Linux 6.1).
NEWER_FIELDS = {"kvm_run.hypercall.flags", "kvm_run.memory_fault"}
# Ours: 32 bytes of whichever kvm_debug_exit_arch; alignment made explicit.
OUR_FIELDS = {"kvm_run.debug", "kvm_run.debug.arch", "kvm_regs._align"}
# Structures younger than those headers, with the request that brought each.
NEWER_STRUCTS = {
    "kvm_userspace_memory_region2": "KVM_SET_USER_MEMORY_REGION2",
    "kvm_memory_attributes": "KVM_SET_MEMORY_ATTRIBUTES",
    "kvm_create_guest_memfd": "KVM_CREATE_GUEST_MEMFD",
    "kvm_pre_fault_memory": "KVM_PRE_FAULT_MEMORY",
    "kvm_arm_counter_offset": "KVM_ARM_SET_COUNTER_OFFSET",
    "kvm_smccc_filter": "KVM_ARM_VM_SMCCC_FILTER",
    "reg_mask_range": "KVM_ARM_GET_REG_WRITABLE_MASKS",
}
# Part of another structure in C, without a name of their own.
UNNAMED = {"KvmVcpuEventsException"}
# Enumerators, which the preprocessor does not see.
ENUMERATORS = {
    "KVM_REG_ARM_STD_BIT_TRNG_V1_0",
    "KVM_REG_ARM_STD_HYP_BIT_PV_TIME",
    "KVM_REG_ARM_VENDOR_HYP_BIT_FUNC_FEAT",
    "KVM_REG_ARM_VENDOR_HYP_BIT_PTP",
}

_CONSTANT = re.compile(r"(KVM|PSCI|VGIC)_[A-Z0-9a-z_]+$|SYNC_REGS_SIZE_BYTES$")


def c_name(name: str) -> str:
    """KvmIrqLevel -> kvm_irq_level."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def constants(module: ModuleType) -> Facts:
    """The module's constants, modulo 2**64 as C prints them."""
    return {
        name: value & (1 << 64) - 1
        for name, value in vars(module).items()
        if isinstance(value, int) and _CONSTANT.match(name)
    }


def structures(module: ModuleType) -> dict[str, Any]:
    """The structures that C knows by name."""
    return {
        c_name(name): value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, ctypes.Structure)
        and value.__module__.startswith("anykvm.uapi")
        and not re.match(r"(Run[A-Z]|_)", name)
        and name not in UNNAMED
    }


def fields(kind: Any, prefix: str = "", base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Every field: dotted name as C writes it, offset and size in bytes."""
    for name, *_ in kind._fields_:
        descriptor, sub = getattr(kind, name), dict(kind._fields_)[name]
        offset = base + descriptor.offset
        if name in getattr(kind, "_anonymous_", ()):
            yield from fields(sub, prefix, offset)
            continue
        yield f"{prefix}{name}", offset, descriptor.size
        if issubclass(sub, ctypes.Structure | ctypes.Union):
            yield from fields(sub, f"{prefix}{name}.", offset)


def python_facts(module: ModuleType) -> Facts:
    """What the module says, in the form the C program prints."""
    facts = constants(module)
    for struct, kind in structures(module).items():
        facts[f"sizeof {struct}"] = ctypes.sizeof(kind)
        for name, offset, size in fields(kind):
            if not is_ours(f"{struct}.{name}"):
                facts[f"offsetof {struct}.{name}"] = offset
                if size:
                    facts[f"sizeof {struct}.{name}"] = size
    return facts


def is_ours(path: str) -> bool:
    return path in OUR_FIELDS


def is_newer(path: str) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in NEWER_FIELDS)


def program(module: ModuleType) -> str:
    """A C program that prints the same facts as JSON, as far as the headers have them."""
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "#define GENMASK(h, l) ((~0ULL << (l)) & (~0ULL >> (63 - (h))))",
        "#define SZ_64K 0x10000",
        "#include <linux/kvm.h>",
        "#include <linux/psci.h>",
        '#define SAY(key, value) printf(",\\n\\"%s\\": %llu", key, (unsigned long long)(value))',
        "int main(void)",
        "{",
        '\tprintf("{\\"\\": 0");',
    ]
    for name in constants(module):
        if name in ENUMERATORS:
            lines.append(f'\tSAY("{name}", {name});')
        else:
            lines += [f"#ifdef {name}", f'\tSAY("{name}", {name});', "#endif"]
    for struct, kind in structures(module).items():
        if struct in NEWER_STRUCTS:
            lines.append(f"#ifdef {NEWER_STRUCTS[struct]}")
        lines.append(f'\tSAY("sizeof {struct}", sizeof(struct {struct}));')
        for name, _, size in fields(kind):
            path = f"{struct}.{name}"
            if is_ours(path) or is_newer(path):
                continue
            lines.append(f'\tSAY("offsetof {path}", offsetof(struct {struct}, {name}));')
            if size:  # an array without a length has no sizeof in C
                lines.append(f'\tSAY("sizeof {path}", sizeof(((struct {struct} *)0)->{name}));')
        if struct in NEWER_STRUCTS:
            lines.append("#endif")
    lines += ['\tprintf("}\\n");', "\treturn 0;", "}"]
    return "\n".join(lines) + "\n"


def c_facts(module: ModuleType, directory: Path, include: Path | None = None) -> Facts | None:
    """Compile and run the program; None without a compiler. Headers come from ``include``, or the system's."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, binary = directory / "probe.c", directory / "probe"
    source.write_text(program(module))
    command = [compiler, "-std=gnu11", "-o", str(binary), str(source)]
    if include is not None:
        command[1:1] = ["-isystem", str(include)]
    subprocess.run(command, check=True, timeout=60)
    output = subprocess.run([str(binary)], check=True, timeout=10, capture_output=True, text=True).stdout
    facts: Facts = json.loads(output)
    del facts[""]
    return facts
