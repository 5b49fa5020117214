# SPDX-License-Identifier: GPL-2.0-only
"""Builds the engine: a C extension over the static archive in the pinned Unicorn wheel."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup

# Unicorn's functions that the engine takes the place of (src/anykvm/engine/src/*.c has a __wrap_ of each).
WRAPPED = [
    "gen_intermediate_code_aarch64",
    "tcg_gen_callN_aarch64",
    "tcg_gen_exit_tb_aarch64",
    "tcg_gen_mb_aarch64",
    "cpu_ldl_code_aarch64",
    "tlb_reset_dirty_by_vaddr_aarch64",
    "tlb_set_page_with_attrs_aarch64",
    "tlb_flush_by_mmuidx_all_cpus_synced_aarch64",
    "tlb_flush_page_by_mmuidx_all_cpus_synced_aarch64",
    "tlb_flush_all_cpus_synced_aarch64",
    "arm_cpu_tlb_fill_aarch64",
]


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
            *(f"-Wl,--wrap={name}" for name in WRAPPED),
            "-Wl,--exclude-libs,ALL",
            str(archive),
            "-lpthread",
            "-lm",
        ],
    )


setup(ext_modules=[engine()])
