# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import sys
from pathlib import Path

# The benchmarks are not installed: they run from the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))
