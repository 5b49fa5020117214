# SPDX-License-Identifier: GPL-2.0-only
"""A /dev/kvm for programs that know nothing of anykvm: the preload library, and Python's side of it in the program."""
