# SPDX-License-Identifier: GPL-2.0-only
import sys
from pathlib import Path

# The VMM's fakes serve here, too.
sys.path.insert(0, str(Path(__file__).parents[1] / "vmm"))
