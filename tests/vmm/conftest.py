# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import gc
import os
import threading

import pytest


@pytest.fixture
def nothing_leaks():
    """No thread, no file descriptor and no mapping is left by a test."""
    gc.collect()
    threads, files = set(threading.enumerate()), sorted(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert sorted(os.listdir("/proc/self/fd")) == files
