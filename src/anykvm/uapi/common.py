# SPDX-License-Identifier: GPL-2.0-only
"""The KVM ABI that all architectures share, under one name.

What is here is defined in ``requests``, ``structs``, ``run``, ``constants``, ``exits`` and ``caps``.
"""

from __future__ import annotations

from .caps import *  # noqa: F403
from .constants import *  # noqa: F403
from .exits import *  # noqa: F403
from .requests import *  # noqa: F403
from .run import *  # noqa: F403
from .structs import *  # noqa: F403
