# SPDX-License-Identifier: GPL-2.0-only
import sys
from pathlib import Path

# Work that the tests spread is in modules of this directory.
sys.path.insert(0, str(Path(__file__).parent))
