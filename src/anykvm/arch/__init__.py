# SPDX-License-Identifier: GPL-2.0-only
"""The architectures: one package for each, with the same file names in all (``interface.py``)."""
