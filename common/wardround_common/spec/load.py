"""Reading ``federation.toml``, ``site.toml``, ``policy.toml`` and ``aggregator.toml``.

Promises:

1. A file that loads has exactly the types that the models ask for: no text is read as a number, no
   truth value as a count. A whole number stands for a number, a list for a fixed list: TOML has
   only these.
2. A file that does not load gives one line per problem: file, line, key, value, what is allowed.
3. Nothing is read beyond 1 MiB, and nothing is fetched, opened or executed on the file's behalf.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from wardround_common.errors import ConfigError
from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.spec.base import Table
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.lines import key_lines
from wardround_common.spec.outline import FileKind
from wardround_common.spec.policy import PolicySpec
from wardround_common.spec.problems import Source, key_text, problem_lines
from wardround_common.spec.site import SiteSpec

MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_WHOLE_NUMBER: Final = 2**63 - 1

Model = TypeVar("Model", bound=Table)


def load_federation(path: Path) -> FederationSpec:
    """Read a federation file.

    Args:
        path: a TOML file of at most 1 MiB.

    Raises:
        ConfigError: it is missing (``file_missing``), unreadable (``file_unreadable``), too large
            (``file_too_large``), not UTF-8 (``file_encoding``), not TOML (``toml_syntax``) or not
            a federation file (``federation_file``).
    """
    return _load(path, "federation", FederationSpec)


def load_site(path: Path) -> SiteSpec:
    """Read a site file.

    Args:
        path: a TOML file of at most 1 MiB.

    Raises:
        ConfigError: as :func:`load_federation`, with the code ``site_file`` for wrong content.
    """
    return _load(path, "site", SiteSpec)


def load_aggregator(path: Path) -> AggregatorSpec:
    """Read an aggregator file.

    Args:
        path: a TOML file of at most 1 MiB.

    Raises:
        ConfigError: as :func:`load_federation`, with the code ``aggregator_file`` for wrong content.
    """
    return _load(path, "aggregator", AggregatorSpec)


def load_policy(path: Path) -> PolicySpec:
    """Read a site's policy.

    Args:
        path: a TOML file of at most 1 MiB.

    Raises:
        ConfigError: as :func:`load_federation`, with the code ``policy_file`` for wrong content.
    """
    return _load(path, "policy", PolicySpec)


def _load(path: Path, kind: FileKind, model: type[Model]) -> Model:
    text = _read_text(path)
    raw = _parse(path, text)
    source = Source(str(path), kind, raw, key_lines(text))
    odd = _odd_value(raw, ())
    if odd is not None:
        where, why = odd
        raise ConfigError(source.problem(where, f"{key_text(where)} {why}"), code=f"{kind}_file")
    try:
        return model.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        problems = problem_lines(source, error.errors(include_url=False))
        raise ConfigError("\n".join(problems), code=f"{kind}_file") from None


def _read_text(path: Path) -> str:
    """The whole file as text, without a byte order mark."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", code="file_missing") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a folder, name a file", code="file_missing") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", code="file_unreadable"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{path}: more than {MAX_FILE_BYTES} bytes; allowed: at most 1 MiB",
            code="file_too_large",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8",
            code="file_encoding",
        ) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", code="toml_syntax") from None
    except ValueError as error:
        words, line = str(error), None
        if found := re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", words):
            words, line = words[: found.start()], found[1] or str(text.count("\n") + 1)
        words = re.sub(r"\('([^)]*)'\)|\('([^']*)',\)", r"\1\2", words).replace("', '", ".")
        if words.startswith("Exceeds the limit"):
            words = "a number has more than 4300 digits"
        place = path if line is None else f"{path}:{line}"
        raise ConfigError(f"{place}: not TOML: {words}", code="toml_syntax") from None


def _odd_value(value: object, path: tuple[str, ...]) -> tuple[tuple[str, ...], str] | None:
    """The first value that no key of any file takes: a date, a huge number, deep nesting."""
    if len(path) > MAX_DEPTH:
        return path, f"is nested too deeply; allowed: at most {MAX_DEPTH} levels"
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_odd_value(entry, (*path, str(name))) for name, entry in entries)
        return next((odd for odd in found if odd is not None), None)
    if isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER:
        return path, f"is too large a number; allowed: at most {MAX_WHOLE_NUMBER}"
    if isinstance(value, str | int | float):
        return None
    return path, f"is a date or time ({value}); allowed: put it in quotes to mean text"
