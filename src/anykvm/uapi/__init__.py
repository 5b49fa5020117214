# SPDX-License-Identifier: GPL-2.0-only
"""The KVM ABI as data: requests, structures, exit reasons, capabilities. It knows nothing else.

``common`` holds what all architectures share, one module per architecture the rest (``arm64``).
"""
