# SPDX-License-Identifier: GPL-2.0-only
"""Three ways to create a vCPU, that of Linux 5.5, of 5.6 and of today, over the same steps of an architecture.

The core knows today's only. What is here to be looked at makes real vCPUs in real VMs.
"""
