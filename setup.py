# SPDX-License-Identifier: GPL-2.0-only
"""Builds the engine, a C extension over the static archive in the pinned Unicorn wheel, and the preload library."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup

# Unicorn's functions that the engine takes the place of (src/anykvm/engine/src/*.c has a __wrap_ of each).
EXCHANGES = " ".join(f"helper_atomic_xchg{name}" for name in ["b", "w_le", "l_le", "q_le", "w_be", "l_be", "q_be"])
WRAPPED = {
    "aarch64": """
        cpu_abort gen_intermediate_code tcg_gen_callN tcg_gen_exit_tb tcg_gen_mb cpu_ldl_code
        address_space_translate_for_iotlb address_space_ldl_le address_space_ldl_be address_space_ldq_le
        address_space_ldq_be
        tlb_reset_dirty_by_vaddr tlb_set_page_with_attrs arm_cpu_tlb_fill tlb_flush_all_cpus_synced
        tlb_flush_by_mmuidx_all_cpus_synced tlb_flush_page_by_mmuidx_all_cpus_synced
    """,
    "x86_64": """
        cpu_abort gen_intermediate_code get_page_addr_code tcg_gen_callN tcg_gen_exit_tb
        address_space_translate_for_iotlb address_space_ldub address_space_lduw address_space_ldl address_space_ldq
        address_space_stb address_space_stw address_space_stl address_space_stl_notdirty address_space_stq
        x86_cpu_get_phys_page_attrs_debug
        tcg_region_reset_all
        tlb_reset_dirty_by_vaddr tlb_protect_code tlb_set_page_with_attrs x86_cpu_tlb_fill x86_stl_phys_notdirty
        helper_lookup_tb_ptr cpu_x86_update_cr3 tlb_flush tlb_flush_page tlb_flush_by_mmuidx tlb_flush_page_by_mmuidx
        tb_invalidate_phys_page_fast
        helper_inb helper_inw helper_inl helper_outb helper_outw helper_outl helper_rdmsr helper_wrmsr helper_cpuid
        helper_read_crN helper_write_crN helper_set_dr helper_get_dr
        cpu_check_watchpoint cpu_watchpoint_address_matches breakpoint_handler
        helper_le_lduw_mmu helper_le_ldul_mmu helper_le_ldq_mmu helper_le_stw_mmu helper_le_stl_mmu helper_le_stq_mmu
        helper_rdtsc helper_rdtscp helper_syscall helper_sysenter
        helper_raise_interrupt helper_rdpmc helper_ldmxcsr
        translator_loop cpu_ldub_code cpu_lduw_code cpu_ldl_code cpu_ldl_mmuidx_ra tcg_gen_op3
        tcg_gen_qemu_ld_i32 tcg_gen_qemu_ld_i64 tcg_gen_qemu_st_i32 tcg_gen_qemu_st_i64
    """,
}


def unicorn_home() -> Path:
    """Find the installed wheel without importing it: importing loads its shared library."""
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        sys.exit("anykvm's engine is built from unicorn==2.1.4: install it first (pip does, with build isolation)")
    return Path(spec.origin).parent


def engine() -> Extension:
    """Describe the engine's extension module."""
    home = unicorn_home()
    archive = home / "lib" / "libunicorn.a"
    if not archive.exists():
        sys.exit(f"no libunicorn.a in the unicorn wheel at {home}: anykvm needs the wheel of unicorn==2.1.4")
    sources = Path("src/anykvm/engine/src")
    return Extension(
        "anykvm.engine._engine",
        sources=sorted(str(p) for p in sources.glob("*.c")),
        depends=sorted(str(p) for p in sources.glob("*.h")),
        include_dirs=[str(home / "include")],
        extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"],
        extra_link_args=[
            *(
                f"-Wl,--wrap={name}_{target}"
                for target, names in WRAPPED.items()
                for name in f"{names} {EXCHANGES}".split()
            ),
            "-Wl,--exclude-libs,ALL",
            str(archive),
            "-lpthread",
            "-lm",
        ],
    )


def preload() -> Extension:
    """Describe the preload library: built as an extension module is, but nobody imports it."""
    sources = Path("src/anykvm/preload/src")
    return Extension(
        "anykvm.preload._preload",
        sources=sorted(str(p) for p in sources.glob("*.c")),
        depends=sorted(str(p) for p in sources.glob("*.h")),
        extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"],
        extra_link_args=["-Wl,-z,defs", "-Wl,-z,nodelete", "-ldl", "-lpthread"],
    )


setup(ext_modules=[engine(), preload()])
