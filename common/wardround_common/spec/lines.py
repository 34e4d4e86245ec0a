"""On which line of a TOML file a key stands.

``tomllib`` forgets positions. This scanner reads a file that ``tomllib`` has already accepted, so
it may assume valid syntax; keys inside inline tables are left out and found by their parent.
"""

import re
from typing import Final

Path = tuple[str, ...]

_KEY: Final = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|"((?:[^"\\]|\\.)*)"|'([^']*)')[ \t]*""")
_VALUE: Final = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\''''
    r"""|#[^\n]*|[\[{]|[\]}]|\n|[^"'#\[\]{}\n]+""",
    re.DOTALL,
)
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def key_lines(text: str) -> dict[Path, int]:
    """The first line of every table and key.

    Args:
        text: a valid TOML document.

    Returns:
        Dotted key as a tuple -> line number from 1.
    """
    lines: dict[Path, int] = {}
    table: Path = ()
    line, counted = 1, 0
    position = _skip_blank(text, 0)
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        if text[position] == "[":
            path, end = _dotted_key(text, position + 1 + text.startswith("[[", position))
            table, end = path, _line_end(text, end)
        else:
            key, end = _dotted_key(text, position)
            path, end = table + key, _skip_value(text, end)
        for length in range(1, len(path) + 1):
            lines.setdefault(path[:length], line)
        position = max(_skip_blank(text, end), position + 1)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a key, else of the nearest table around it, else None."""
    for length in range(len(path), 0, -1):
        plain = tuple(re.sub(r"\[\d+\]$", "", part) for part in path[:length])
        for candidate in (path[:length], plain):
            if candidate in lines:
                return lines[candidate]
    return None


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _dotted_key(text: str, position: int) -> tuple[Path, int]:
    """The parts of a dotted key and the position behind it."""
    parts: list[str] = []
    while match := _KEY.match(text, position):
        bare, basic, literal = match.groups()
        parts.append(bare or basic or literal or "")
        position = match.end()
        if not text.startswith(".", position):
            break
        position += 1
    return tuple(parts), position


def _skip_value(text: str, position: int) -> int:
    """The end of the value that starts behind ``=``."""
    depth = 0
    while match := _VALUE.match(text, position):
        lexeme = match.group()
        if lexeme == "\n" and depth == 0:
            break
        depth += (lexeme in {"[", "{"}) - (lexeme in {"]", "}"})
        position = match.end()
    return position
