# SPDX-License-Identifier: GPL-2.0-only
"""The lab's results in one file that a person would rather look at than read."""
