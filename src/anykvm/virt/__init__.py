# SPDX-License-Identifier: GPL-2.0-only
"""The architecture-neutral KVM: system, VM, vCPU, memory slots, interrupts, eventfds, devices, statistics.

It reaches memory, locks, threads, file descriptors and time through ``services`` only, and an architecture through
``hooks`` only.
"""
