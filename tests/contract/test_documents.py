"""The documents by which a hospital decides name only what there is.

In them, every path, test, command, option, key of the policy and refusal code must exist, and every
figure of the form "N of N" must stand in docs/measurements.md. The twins show that each of these is
noticed when it is wrong.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import click
import pytest
from pydantic import BaseModel

from wardround_common.cli import wardround
from wardround_common.spec.policy import PolicySpec

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = ("guarantees.md", "threat-model.md", "privacy-officer.md", "compliance.md")
_PATH: Final = re.compile(r"(?:client|common|server|tests|docs|deploy|examples|benchmarks)/\S+")
_CODE: Final = re.compile(r"(?:policy|egress)_[a-z_]+[a-z]")
_KEY: Final = re.compile(r"(?:allow|limits|demands)\.[a-z_]+")
_OPTION: Final = re.compile(r"--[a-z][a-z-]*")
_FIGURE: Final = re.compile(r"\b[\d,]*\d of [\d,]*\d\b")


def wrong_in(text: str) -> list[str]:
    """What a document names that does not exist."""
    spans = _spans(text)
    found = [name for span in spans for name in (*_paths(span), *_commands(span), *_names(span))]
    return found + [figure for figure in _FIGURE.findall(text) if figure not in _measured()]


def _spans(text: str) -> list[str]:
    """All that is set as code: spans within lines, and each line of a block."""
    blocks = re.findall(r"^```(?!mermaid)\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return spans + [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def _paths(span: str) -> Iterator[str]:
    if not _PATH.fullmatch(span):
        return
    path, _, test = span.partition("::")
    if not (ROOT / path).exists():
        yield path
    elif test and not re.search(
        rf"^def {re.escape(test)}\(", (ROOT / path).read_text(), re.MULTILINE
    ):
        yield span


def _commands(span: str) -> Iterator[str]:
    words = span.partition("  ")[0].split()
    if words[:1] == ["wardround"]:
        yield from _unknown(words[1:])
    elif _OPTION.fullmatch(span) and span not in _options():
        yield span


def _unknown(words: list[str]) -> Iterator[str]:
    """The first verb of a command line that is none, or else the options that are none of its own."""
    command: click.Command = wardround
    path = "wardround"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        path, verb, words = f"{path} {words[0]}", words[0], words[1:]
        known = command.get_command(click.Context(command), verb)
        if known is None:
            yield path
            return
        command = known
    own = {option for parameter in command.params for option in parameter.opts}
    yield from (f"{path} {word}" for word in words if word.startswith("-") and word not in own)


def _names(span: str) -> Iterator[str]:
    name = span.partition(" ")[0]
    if _KEY.fullmatch(name) and name not in policy_keys():
        yield name
    if _CODE.fullmatch(span) and span not in _codes():
        yield span


@cache
def policy_keys() -> frozenset[str]:
    """Every key of policy.toml, as ``limits.min_cell`` or ``dry_run``."""
    keys = set()
    for name, field in PolicySpec.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            keys |= {f"{name}.{key}" for key in table.model_fields}
        else:
            keys.add(name)
    return frozenset(keys)


@cache
def _options() -> frozenset[str]:
    """Options of any verb."""
    found: set[str] = set()
    commands: list[click.Command] = [wardround]
    while commands:
        command = commands.pop()
        found |= {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, click.Group):
            context = click.Context(command)
            known = (command.get_command(context, name) for name in command.list_commands(context))
            commands += [each for each in known if each is not None]
    return frozenset(found)


@cache
def _codes() -> frozenset[str]:
    """What the client spells with such a name: refusals, and events of the audit log."""
    texts = (path.read_text() for path in (ROOT / "client").rglob("*.py"))
    return frozenset(code for text in texts for code in re.findall(rf'"({_CODE.pattern})"', text))


@cache
def _measured() -> frozenset[str]:
    return frozenset(_FIGURE.findall((ROOT / "docs" / "measurements.md").read_text()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_exists(name: str) -> None:
    wrong = set(wrong_in((ROOT / "docs" / name).read_text()))
    assert not wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("in `client/wardround_client/policy/rule.py`", "client/wardround_client/policy/rule.py"),
        (
            "`tests/unit/test_audit.py::test_nothing_at_all`",
            "tests/unit/test_audit.py::test_nothing_at_all",
        ),
        ("`wardround audit prove DIR`", "wardround audit prove"),
        ("`wardround audit\nprove DIR`", "wardround audit prove"),
        ("```\n$ wardround site join site.toml\n```", "wardround site join"),
        ("`wardround audit verify DIR --heads FILE`", "wardround audit verify --heads"),
        ("never `--trust-everybody`", "--trust-everybody"),
        ("`limits.min_cells` below", "limits.min_cells"),
        ("refused with `policy_taste`", "policy_taste"),
        ("refused: 86 of 86 kinds", "86 of 86"),
    ],
)
def test_twin_a_name_that_does_not_exist_is_found(text: str, found: str) -> None:
    assert wrong_in(text) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "`client/wardround_client/policy/rules.py`",
        "`tests/unit/test_audit.py::test_a_damaged_log_is_not_written_to`",
        "`wardround audit verify DIR --head FILE`",
        "`--same-user`",
        "`limits.min_cell`",
        "`policy_step` and `policy_loaded`",
        "85 of 85 kinds",
    ],
)
def test_a_name_that_exists_is_not(text: str) -> None:
    assert wrong_in(text) == []


def test_the_officers_guide_explains_every_key_of_the_policy() -> None:
    text = (ROOT / "docs" / "privacy-officer.md").read_text()
    rows = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    assert policy_keys() <= rows


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_short_and_is_found_from_the_first_page(name: str) -> None:
    assert len((ROOT / "docs" / name).read_text().splitlines()) <= 250
    assert f"(docs/{name})" in (ROOT / "README.md").read_text()
    assert f"(docs/{name})" in (ROOT / "SECURITY.md").read_text()
