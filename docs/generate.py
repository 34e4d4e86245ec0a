"""Writes the generated part of the documentation: ``python docs/generate.py``."""

from pathlib import Path

from wardround_common.spec.explain import reference_markdown

TARGET = Path(__file__).parent / "spec-reference.md"


def main() -> None:
    """Write the reference of the two files."""
    TARGET.write_text(reference_markdown(), encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
