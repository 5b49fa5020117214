# SPDX-License-Identifier: GPL-2.0-only
"""A small VMM on the typed API: loads Linux, describes the machine to it, gives it devices, and runs it."""
