# SPDX-License-Identifier: GPL-2.0-only
"""The shape of the source: imports go down only, files stay small, everything public says what it is."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from anykvm.arch import interface

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "src" / "anykvm"

ALLOWED: Final[dict[str, frozenset[str]]] = {
    "uapi": frozenset(),
    "engine": frozenset(),
    "virt": frozenset({"uapi"}),
    "arch": frozenset({"uapi", "virt", "engine"}),
    "host": frozenset({"uapi"}),
    "api": frozenset({"uapi"}),
    "guests": frozenset(),
    "preload": frozenset({"uapi", "virt", "arch", "engine", "testing"}),
    "vmm": frozenset({"api", "uapi"}),
    "testing": frozenset({"uapi", "virt", "api"}),
    "lab": frozenset({"uapi", "engine", "virt", "arch", "api", "testing"}),
    "cli": frozenset({"uapi", "engine", "virt", "arch", "host", "api", "guests", "preload", "vmm", "testing", "lab"}),
}
"""Which other packages of anykvm each package may import. A new package needs a line here."""

LATE: Final[dict[str, frozenset[str]]] = {
    # The typed API finds what answers it by name, when asked; it knows nothing else of it.
    "api/backend.py": frozenset({"anykvm.arch", "anykvm.arch.software", "anykvm.host"}),
    # The test kit makes the backend that its faults are in.
    "testing/backend.py": frozenset({"anykvm.arch.software"}),
    # The API's names, from the top; loaded when first used, so that the layers below do not load them.
    "__init__.py": frozenset({"anykvm.api"}),
}
"""The only modules that may name a package above them, and which."""

LONGEST: Final = 450
LONG: Final[dict[str, str]] = {}
"""Files over LONGEST lines, and why."""

_SUFFIXES: Final = (".py", ".pyi", ".c", ".h", ".S", ".sh")
_LOADERS: Final = {"import_module", "find_spec", "__import__"}


class Import(NamedTuple):
    """An import as written: where, which line, what."""

    path: str
    line: int
    module: str


def sources(*folders: str, suffixes: tuple[str, ...] = _SUFFIXES) -> list[Path]:
    """Every source file below these folders of the repository."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PYTHON: Final = sources("src", suffixes=(".py", ".pyi"))
ALL: Final = [*sources("src", "tests", "benchmarks", "scripts"), ROOT / "setup.py", ROOT / ".ci" / "run"]


def imports(text: str, path: str) -> Iterator[Import]:
    """What a module below src/anykvm imports, by full name; also late, by a literal name, and for type checking."""
    package = ["anykvm", *Path(path).parent.parts]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from . import x" and "from anykvm import x" name modules; so may any other: the longer name is as good.
            yield from (Import(path, node.lineno, f"{module}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Call):
            yield from (Import(path, node.lineno, name) for name in _loaded(node))


def _loaded(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in _LOADERS or not node.args:
        return
    argument = node.args[0]
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]  # type: ignore[assignment]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value


def upward(found: Import) -> str | None:
    """Say what is wrong with an import; None if it goes down, sideways, or out of anykvm."""
    parts = found.module.split(".")
    if parts[0] != "anykvm":
        return None
    if any(found.module == late or found.module.startswith(f"{late}.") for late in LATE.get(found.path, ())):
        return None
    own = found.path.split("/")[0] if "/" in found.path else ""
    target = parts[1] if len(parts) > 1 else ""
    if target == own and own:
        return None
    if own not in ALLOWED:
        return f"{found.path}:{found.line}: {own or 'the top'} has no line in ALLOWED, and imports {found.module}"
    if target not in ALLOWED[own]:
        return f"{found.path}:{found.line}: {own} may not import {found.module}"
    return None


def test_imports_go_down_only() -> None:
    wrong = []
    for path in PYTHON:
        inside = path.relative_to(SOURCE).as_posix()
        wrong += [complaint for one in imports(path.read_text(), inside) if (complaint := upward(one))]
    assert wrong == []


def test_every_package_has_its_place() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages == set(ALLOWED)
    for own, below in ALLOWED.items():
        assert own not in below
        assert all(own not in ALLOWED[other] for other in below), f"{own} is below and above another"


def test_the_late_imports_are_still_made() -> None:
    for inside, names in LATE.items():
        made = {one.module for one in imports((SOURCE / inside).read_text(), inside)}
        assert {name for name in names if not any(module.startswith(name) for module in made)} == set(), inside


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        ("virt/vm.py", "from anykvm.arch import interface"),
        ("virt/vm.py", "from ..arch.arm64 import hooks"),
        ("virt/vm.py", "from .. import engine"),
        ("virt/vm.py", "from anykvm import api"),
        ("virt/vm.py", "def f():\n    import anykvm.arch.arm64.vcpu"),
        ("virt/vm.py", "from anykvm import Kvm"),
        ("uapi/run.py", "from anykvm.virt import vm"),
        ("engine/machine.py", "from anykvm.uapi import common"),
        ("arch/arm64/run.py", "from ...api import Kvm"),
        ("host/backend.py", "from anykvm.virt.backend import SoftwareBackend"),
        ("api/vm.py", "import importlib\nimportlib.import_module('anykvm.arch.software')"),
        ("api/vm.py", "import importlib\nimportlib.import_module(f'anykvm.virt.{name}')"),
        ("api/backend.py", "from anykvm.virt.backend import SoftwareBackend"),
        ("guests/apt.py", "from anykvm.uapi import common"),
        ("vmm/machine.py", "from anykvm.virt.vm import Vm"),
        ("vmm/machine.py", "from anykvm.cli import messages"),
        ("new/thing.py", "from anykvm.uapi import common"),
    ],
)
def test_an_upward_import_is_noticed(inside: str, text: str) -> None:
    assert any(upward(one) for one in imports(text, inside))


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        ("virt/vm.py", "import os\nfrom anykvm.uapi import requests\nfrom . import irq\nfrom .ladder import Ladder"),
        ("arch/arm64/run.py", "from anykvm.engine import Event\nfrom anykvm.virt import stats\nfrom . import inject"),
        ("cli/main.py", "from anykvm.vmm.errors import VmmError"),
        ("vmm/arm64.py", "from anykvm.api import Kvm\nfrom anykvm.uapi import arm64"),
    ],
)
def test_a_downward_import_is_fine(inside: str, text: str) -> None:
    assert [complaint for one in imports(text, inside) if (complaint := upward(one))] == []


def test_common_code_knows_no_architecture() -> None:
    names = interface.packages()
    assert names
    wrong = []
    for path in sources("src/anykvm/virt", suffixes=(".py",)):
        inside = path.relative_to(SOURCE).as_posix()
        for one in imports(path.read_text(), inside):
            wrong += [f"{inside}:{one.line}: {one.module}" for name in names if name in one.module.split(".")[2:]]
    assert wrong == []


def test_the_engine_knows_nothing_of_kvm() -> None:
    wrong = []
    for path in sources("src/anykvm/engine"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bKVM_[A-Z]|linux/kvm\.h|\bkvm_run\b", line):
                wrong.append(f"{relative(path)}:{number}: {line.strip()}")
    assert wrong == []


def test_every_wrapped_function_is_wrapped() -> None:
    """setup.py's list and the engine's __wrap_ functions are the same."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    tables = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "WRAPPED"
    ]
    (table,) = tables
    exchanges = [f"helper_atomic_xchg{size}" for size in ("b", "w_le", "l_le", "q_le", "w_be", "l_be", "q_be")]
    names = [f"{name}_{target}" for target, listed in table.items() for name in [*listed.split(), *exchanges]]
    files = [path.read_text() for path in sources("src/anykvm/engine/src", suffixes=(".c", ".h"))]
    written = {name for text in files for name in re.findall(r"^[a-z][\w *]*\b__wrap_(\w+)\(", text, re.MULTILINE)}
    # translate.h is written once for all targets.
    common = {name for text in files for name in re.findall(r"^void \*?TARGET_WRAP\((\w+)\)", text, re.MULTILINE)}
    sizes = {size for text in files for size in re.findall(r"^EXCHANGE\((\w+),", text, re.MULTILINE)}
    common |= {f"helper_atomic_xchg{size}" for size in sizes}
    written |= {f"{name}_{target}" for name in common for target in table}
    for target, file in (("aarch64", "arm64_memory.c"), ("x86_64", "x86_memory.c")):
        text = (ROOT / "src/anykvm/engine/src" / file).read_text()
        written |= {f"{name}_{target}" for name in re.findall(r"^PHYSICAL_\w+\((\w+),", text, re.MULTILINE)}
    assert sorted(names) == sorted(written)


@pytest.mark.parametrize("name", interface.packages())
def test_an_architecture_has_the_files_of_the_interface(name: str) -> None:
    assert interface.missing_files(name) == []


def test_every_source_says_its_licence() -> None:
    line = re.compile(r"(#|//|/\*|@) SPDX-License-Identifier: GPL-2\.0-only\b")
    assert len(ALL) > 100
    # A guest program of a test begins with what it does.
    marked = [path for path in ALL if not path.is_relative_to(ROOT / "tests") or path.suffix != ".S"]
    assert [relative(path) for path in marked if not any(map(line.match, path.read_text().splitlines()[:2]))] == []


def test_no_file_is_long() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in ALL}
    assert {name: length for name, length in lengths.items() if length > LONGEST and name not in LONG} == {}
    assert {name for name in LONG if lengths.get(name, 0) <= LONGEST} == set(), "no longer long: take it off the list"


def test_nothing_is_left_to_do() -> None:
    marker = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    texts = [*ALL, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert [relative(path) for path in texts if marker.search(path.read_text())] == []


def undocumented(path: Path) -> Iterator[str]:
    """The public modules, classes and functions of a file that have no docstring."""
    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None and tree.body:
        yield f"{relative(path)}:1"

    def visit(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_") or any(map(_documented_elsewhere, node.decorator_list)):
                continue
            if ast.get_docstring(node) is None:
                yield f"{relative(path)}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body)

    yield from visit(tree.body)


def _documented_elsewhere(decorator: ast.expr) -> bool:
    """An overload's docstring is its implementation's, a setter's its property's."""
    if isinstance(decorator, ast.Attribute):
        return decorator.attr in ("setter", "deleter")
    return isinstance(decorator, ast.Name) and decorator.id in ("overload", "override")


def test_everything_public_has_a_docstring() -> None:
    assert [one for path in PYTHON if path.suffix == ".py" for one in undocumented(path)] == []


def test_the_engine_is_described_to_the_type_checker() -> None:
    """What the extension defines and what its stub says are the same names."""
    if importlib.util.find_spec("anykvm.engine._engine") is None:
        pytest.skip("the engine is not built")
    from anykvm.engine import _engine

    stub = ast.parse((SOURCE / "engine" / "_engine.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert set(classes) == {name for name, value in vars(_engine).items() if isinstance(value, type)}
    for name, node in classes.items():
        said = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        said |= {
            member.target.id
            for member in node.body
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name)
        }
        there = {member for member in vars(getattr(_engine, name)) if not member.startswith("__")}
        assert {one for one in said if not one.startswith("__")} == there, name
