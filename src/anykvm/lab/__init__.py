# SPDX-License-Identifier: GPL-2.0-only
"""The lab: creation and destruction of vCPUs made to fail, to race, and to be seen."""
