# SPDX-License-Identifier: GPL-2.0-only
"""The documents say what is: links lead somewhere, examples run, every claim names a test that exists."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import click
import pytest

from anykvm.cli import main as cli

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
PLACE: Final = re.compile(r"`((?:tests|benchmarks)/[\w./-]+(?:::[\w:\[\]-]+)?)`")


def prose(path: Path) -> str:
    """A document without its blocks of code, where brackets are not links."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def links(path: Path) -> list[tuple[str, str]]:
    return [(found["text"], found["target"]) for found in LINK.finditer(prose(path))]


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@functools.cache
def python_symbols(path: Path) -> frozenset[str]:
    """Functions, classes and constants of a file; what is in a class as ``Class.name``."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                found.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)

    visit(ast.parse(path.read_text()).body, "")
    return frozenset(found)


@functools.cache
def c_symbols(path: Path) -> frozenset[str]:
    """Functions and structures defined in a C file, and constants of a header."""
    text = path.read_text()
    functions = re.findall(r"^[a-z][\w \*]*?\b(\w+)\([^;]*?\)(?: __attribute__\(.*?\)\))?\n\{", text, re.MULTILINE)
    kinds = re.findall(r"^(?:struct|enum) (\w+) \{", text, re.MULTILINE)
    defines = re.findall(r"^#define (\w+)", text, re.MULTILINE)
    return frozenset([*functions, *kinds, *defines])


def symbols(path: Path) -> frozenset[str]:
    if path.suffix == ".py":
        return python_symbols(path)
    # A wrapped function is known by the name it has in Unicorn too.
    there = c_symbols(path)
    return there | {name.removeprefix("__wrap_") for name in there}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    wrong = []
    for text, target in links(path):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or not file.is_relative_to(ROOT):
            wrong.append(f"[{text}]({target}): no such file")
        elif anchor and anchor not in {
            slug(line.lstrip("#")) for line in file.read_text().splitlines() if line[:1] == "#"
        }:
            wrong.append(f"[{text}]({target}): no such heading")
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_symbols_are_where_links_say(path: Path) -> None:
    wrong = []
    for text, target in links(path):
        name = re.fullmatch(r"`([\w.]+)`s?", text)
        file = (path.parent / target).resolve()
        if name is not None and file.suffix in (".py", ".c", ".h") and name[1] not in symbols(file):
            wrong.append(f"{name[1]} is not in {target}")
    assert wrong == []


def test_the_tour_links_into_the_code() -> None:
    tour = links(ROOT / "docs" / "tour.md")
    code = [target for text, target in tour if text.startswith("`")]
    assert len(code) >= 60
    assert {"virt", "arch", "engine", "api", "vmm"} <= {target.split("/")[3] for target in code}


def test_the_tour_is_read_in_one_sitting() -> None:
    assert 1500 < len((ROOT / "docs" / "tour.md").read_text().split()) < 2800


def test_the_tour_has_the_ladder_as_it_is() -> None:
    """The rungs that the tour names, in its order, are those of a vCPU that was made."""
    from anykvm.api import BackendUnavailable, Kvm, UnsupportedArchitecture, resolve
    from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V3

    text = (ROOT / "docs" / "tour.md").read_text()
    rungs = re.findall(r"^\| \d \| `([^`]+)`", text, re.MULTILINE)
    inner = [name for name in re.findall(r"^\d\. `([^`]+)`", text, re.MULTILINE)]
    assert inner.count("timer") == 1, "the tour says that there are two of them"
    inner.insert(inner.index("timer"), "timer")
    try:
        backend: Any = resolve("software", "arm64")
    except (BackendUnavailable, UnsupportedArchitecture) as error:
        pytest.skip(str(error))
    with (
        Kvm(backend) as kvm,
        kvm.create_vm() as vm,
        vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V3),
        vm.create_vcpu(0) as vcpu,
    ):
        made = backend.files.by_fd[vcpu.fd].vcpu.ladder.steps
    arch = rungs.index("arch")
    assert made == [*rungs[:arch], *(f"arch: {name}" for name in inner), *rungs[arch + 1 :]]
    undone = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    fd = {"fd", "VM reference"}  # these went when the fd was closed
    assert undone == list(dict.fromkeys(name for name in reversed(made) if name not in fd))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readme_example_prints_what_it_says(tmp_path: Path) -> None:
    programs, outputs = blocks(ROOT / "README.md", "python"), blocks(ROOT / "README.md", "text")
    assert len(programs) == len(outputs) == 1
    assert 'Kvm("software"' in programs[0]
    program = tmp_path / "example.py"
    program.write_text(programs[0])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    if "BackendUnavailable" in done.stderr:
        pytest.skip("the engine is not built")
    assert (done.stderr, done.stdout) == ("", outputs[0])


def commands(path: Path) -> list[list[str]]:
    """The command lines in a document's blocks of code, in words."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.startswith("    ")]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(\.venv/bin/)?anykvm (?!:)|make ", line)]


def test_the_first_screen_has_the_two_commands() -> None:
    head = (ROOT / "README.md").read_text().splitlines()[:30]
    assert [words for words in commands(ROOT / "README.md") if words[0] == "make"] == [
        ["make", "hackbench"],
        ["make", "test"],
    ]
    assert all(any(line.strip().startswith(command) for line in head) for command in ("make hackbench", "make test"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(path):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            continue
        command: click.Command = cli.anykvm
        rest = words[1:]
        context = click.Context(command, info_name="anykvm")
        while isinstance(command, click.Group):
            found = command.get_command(context, rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        options |= {"--help", "-h"}
        if "--" in rest:
            rest = rest[: rest.index("--")]  # What follows is somebody else's.
        assert {word for word in rest if word.startswith("-")} <= options, words


def test_every_subcommand_is_in_the_readme_and_what_is_not_there_is_not() -> None:
    text = (ROOT / "README.md").read_text()
    for name in cli._COMMANDS:
        assert f"anykvm {name}" in text, name
    status = (ROOT / "docs" / "status.md").read_text().partition("## Not yet")[2]
    missing = re.findall(r"`anykvm (\w+)`", status)
    assert missing
    assert not set(missing) & set(cli._COMMANDS)


def test_exit_statuses_in_the_readme_are_those_of_the_command() -> None:
    from anykvm.vmm.outcome import Kind, Outcome

    text = " ".join((ROOT / "README.md").read_text().split())
    for words, kind in (
        ("0 power-off", Kind.POWER_OFF),
        ("3 a kernel panic", Kind.PANIC),
        ("4 KVM could not run the guest", Kind.INTERNAL_ERROR),
        ("124 `--timeout`", Kind.TIMEOUT),
        ("130 Ctrl-C", Kind.INTERRUPT),
    ):
        assert words in text
        assert Outcome(kind).exit_status == int(words.split()[0])


# SPECIFICATION.md


def claims() -> dict[str, list[str]]:
    """The claims, each with the places that show it."""
    text = (ROOT / "SPECIFICATION.md").read_text()
    items = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    return {" ".join(item.split()): PLACE.findall(item) for item in items}


def missing(place: str) -> str | None:
    """Say why a place does not exist; None if it does."""
    name, *parts = place.split("::")
    file = ROOT / name
    if not file.is_file():
        return f"{place}: no such file"
    if name.startswith("tests/") and not parts:
        return f"{place}: a file is not a test; name the test"
    function = ".".join(parts).partition("[")[0]
    if function and function not in python_symbols(file):
        return f"{place}: no such test"
    return None


def test_every_claim_names_a_test_that_exists() -> None:
    found = claims()
    assert len(found) >= 60
    assert [claim for claim, places in found.items() if not places] == []
    assert [why for places in found.values() for place in places if (why := missing(place))] == []


def test_no_claim_is_made_twice() -> None:
    text = (ROOT / "SPECIFICATION.md").read_text()
    assert len(re.findall(r"^- ", text, re.MULTILINE)) == len(claims())


@pytest.mark.parametrize(
    "place",
    [
        "tests/nowhere/test_nothing.py::test_it",
        "tests/test_docs.py",
        "tests/test_docs.py::test_that_nobody_wrote",
        "benchmarks/nothing.py",
    ],
)
def test_a_claim_without_its_test_is_noticed(place: str) -> None:
    assert missing(place) is not None
    assert PLACE.findall(f"`{place}`") == [place]


def test_a_claim_with_its_test_is_fine() -> None:
    assert missing("tests/test_docs.py::test_a_claim_with_its_test_is_fine") is None
    assert missing("tests/test_docs.py::test_a_claim_without_its_test_is_noticed[benchmarks/nothing.py]") is None


# docs/dependencies.md, CHANGELOG.md, LICENSE


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_dependencies_are_those_of_the_project() -> None:
    configuration = project()
    table = configuration["project"]
    wanted = [*table["dependencies"], *configuration["build-system"]["requires"]]
    wanted += [one for extra in table["optional-dependencies"].values() for one in extra]
    ranges = {re.split(r"[<>=!~]", one)[0]: one for one in wanted}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = {
        cells[1]: cells[2] for line in text.splitlines() if len(cells := [part.strip() for part in line.split("|")]) > 4
    }
    assert {name: rows.get(name) for name in ranges} == {name: one.removeprefix(name) for name, one in ranges.items()}
    assert rows["Python"] == table["requires-python"]
    listed = {name for name, versions in rows.items() if versions[:1] in "<>=" and versions} - {"Python"}
    assert listed == set(ranges)


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([\w.]+)\] - (\S+)$", text, re.MULTILINE)
    assert versions[0][0] == project()["project"]["version"]
    assert all(date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in versions)


def test_the_licence_is_the_gpl() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 2, June 1991" in text
    assert project()["project"]["license"]["text"] == "GPL-2.0-only"


def test_the_status_names_the_architectures_there_are() -> None:
    from anykvm.api import architectures

    works, _, not_yet = (ROOT / "docs" / "status.md").read_text().partition("## Not yet")
    elsewhere = re.search(r"none is in the tree \((.*?)\)", not_yet)
    assert elsewhere is not None
    for name in architectures():
        assert f"**{name}**" in works
        assert name not in elsewhere[1].split(", ")


def test_cli_modules_of_the_table_exist() -> None:
    """What the documents rely on: a subcommand's module has the command."""
    for name, (module, attribute, _) in cli._COMMANDS.items():
        assert isinstance(getattr(importlib.import_module(module), attribute), click.Command), name
