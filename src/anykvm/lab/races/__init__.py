# SPDX-License-Identifier: GPL-2.0-only
"""Orders: every interleaving of a few operations, up to a bound, over the real core.

``scheduler.py`` runs tasks one at a time and decides at each point who goes on; ``services.py`` makes the core's
services such points; ``explore.py`` runs every schedule; ``scenarios.py`` says which operations meet and what they
may answer; ``invariants.py`` says what holds at every step.
"""
