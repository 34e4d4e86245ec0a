"""Puts generated text between the markers of a paper."""

from pathlib import Path

MEASUREMENTS = Path(__file__).parents[1] / "docs" / "measurements.md"


def put(paper: Path, marker: str, text: str) -> None:
    """Replace what is between ``<!-- marker -->`` and ``<!-- /marker -->``.

    Raises:
        ValueError: the paper lacks one of the markers; it is left as it is.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, found, rest = paper.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{paper}: markers {begin.strip()} and {end} are needed")
    paper.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")
