"""The scanner finds keys through comments, quotes, lists over several lines and odd spacing."""

import random
import tomllib
from typing import Any

import pytest

from tests.unit.spec_files import FEDERATION
from wardround_common.spec.lines import key_lines, line_of

TRICKY = '''\
# [not.a.table]
top = """
[nor.this]
x = 1
"""   # end
  "quoted key" . 'and literal' = [ # a list
   "]", '#', [1,
   2],
]
[ a . b ]   # comment
x = { y = 1, z = "}" }
text = \'\'\'it's
key = 2\'\'\'
after = "a \\" # no comment"
[[list]]
n = 1
[[list]]
n = 2'''


def test_tricky_spellings_do_not_shift_lines() -> None:
    lines = key_lines(TRICKY)
    assert lines == {
        ("top",): 2,
        ("quoted key",): 6,
        ("quoted key", "and literal"): 6,
        ("a",): 10,
        ("a", "b"): 10,
        ("a", "b", "x"): 11,
        ("a", "b", "text"): 12,
        ("a", "b", "after"): 14,
        ("list",): 15,
        ("list", "n"): 16,
    }


def test_every_key_outside_inline_tables_is_found() -> None:
    def paths(value: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if not isinstance(value, dict):
            return set()
        below = [paths(entry, (*path, key)) for key, entry in value.items()]
        return {(*path, key) for key in value}.union(*below)

    assert set(key_lines(FEDERATION)) == paths(tomllib.loads(FEDERATION))


def test_a_key_without_a_line_has_that_of_the_table_around_it() -> None:
    lines = key_lines(TRICKY)
    assert line_of(lines, ("a", "b", "x", "y")) == 11
    assert line_of(lines, ("a", "b", "text[3]")) == 12
    assert line_of(lines, ("absent",)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_scanner_ends_on_any_text(seed: int) -> None:
    generator = random.Random(seed)
    text = "".join(generator.choice("[]{}=.\"'#\n ab1\\") for _ in range(300))
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())
