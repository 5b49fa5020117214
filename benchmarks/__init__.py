# SPDX-License-Identifier: GPL-2.0-only
"""Measures anykvm side by side with QEMU's TCG and, where there is one, the machine's own /dev/kvm.

``python -m benchmarks [NAME...]``; docs/benchmarks.md says what each measures and how to read the result.
"""
