# SPDX-License-Identifier: GPL-2.0-only
"""Boards for small assembled guests: RAM, cpus, and everything closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from engine_board import Board, Runner
from x86_board import X86Board

from anykvm.guests.tools import Toolchain, assembler


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    return assembler("arm64")


@pytest.fixture
def board(tools: Toolchain) -> Iterator[Callable[..., Board]]:
    boards: list[Board] = []

    def make(program: str, **options: object) -> Board:
        boards.append(Board(tools, program, **options))  # type: ignore[arg-type]
        return boards[-1]

    yield make
    for each in boards:
        each.close()


@pytest.fixture(scope="session")
def x86_tools() -> Toolchain:
    return assembler("amd64")


@pytest.fixture
def x86(x86_tools: Toolchain) -> Iterator[Callable[..., X86Board]]:
    boards: list[X86Board] = []

    def make(source: str = "", **options: int) -> X86Board:
        boards.append(X86Board(x86_tools, source, **options))
        return boards[-1]

    yield make
    for each in boards:
        each.close()


@pytest.fixture
def runner() -> type[Runner]:
    return Runner
