"""Writes the generated parts of the documentation: ``python docs/generate.py``."""

from pathlib import Path

from wardround_common.spec.explain import reference_markdown
from wardround_server.aggregator.front_door import example
from wardround_server.report.schema import schema_text

FOLDER = Path(__file__).parent
GENERATED = {
    "spec-reference.md": reference_markdown,
    "report.schema.json": schema_text,
    "../deploy/nginx/nginx.conf": example,
}


def main() -> None:
    """Write every generated file."""
    for name, content in GENERATED.items():
        (FOLDER / name).write_text(content(), encoding="utf-8")
        print(f"wrote {FOLDER / name}")


if __name__ == "__main__":
    main()
