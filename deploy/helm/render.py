"""Render the chart with its example values into ``deploy/kubernetes/wardround-site.yaml``.

It takes the program ``helm``, or the Python package ``helm-python-sdk`` where that is installed. The first
line of the result holds the digest of the chart's files, so that a chart which was changed without being
rendered again is noticed everywhere.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import yaml

CHART: Final = Path(__file__).parent / "wardround-site"
VALUES: Final = CHART / "example-values.yaml"
RENDERED: Final = CHART.parents[1] / "kubernetes" / "wardround-site.yaml"
NAME: Final = "wardround-site"
_TOOLS: Final = "neither the program helm nor the package helm-python-sdk is installed"


def digest(chart: Path) -> str:
    """SHA-256 over names and contents of all files of a chart."""
    whole = hashlib.sha256()
    for file in sorted(each for each in chart.rglob("*") if each.is_file()):
        content = file.read_bytes()
        whole.update(f"{file.relative_to(chart).as_posix()}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def can_render() -> bool:
    """Whether one of the two tools is there."""
    if shutil.which("helm"):
        return True
    try:
        import helm_python  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def render(chart: Path, values: Path | None) -> str:
    """The manifests of a chart.

    Args:
        chart: its folder.
        values: a file of values over the chart's own; None: none.

    Raises:
        RuntimeError: there is no tool, or it refuses the chart or the values.
    """
    if shutil.which("helm"):
        words = ["helm", "template", NAME, str(chart)]
        words += [] if values is None else ["--values", str(values)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        texts = done.stdout.split("\n---\n")
    else:
        texts = _by_package(chart, values)
    found = [yaml.safe_load(each) for text in texts for each in text.split("\n---\n")]
    found = sorted(filter(None, found), key=lambda each: (each["kind"], each["metadata"]["name"]))
    return "---\n".join(yaml.safe_dump(each, sort_keys=False, width=1000) for each in found)


def _by_package(chart: Path, values: Path | None) -> list[str]:
    try:
        import helm_python  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(_TOOLS) from None
    given = {} if values is None else yaml.safe_load(values.read_text())
    with helm_python.Chart.load(chart) as loaded:
        try:
            loaded.validate_schema(given)
            rendered = loaded.render(given, name=NAME, namespace="default")
        except helm_python.HelmError as error:
            raise RuntimeError(str(error)) from None
    return [text for name, text in sorted(rendered.items()) if not name.endswith((".txt", ".tpl"))]


def header(chart: Path) -> str:
    """The first lines of the rendered file."""
    return (
        f"# chart {digest(chart)}\n"
        "# Rendered from deploy/helm/wardround-site with its example-values.yaml by `make chart`; "
        "change the chart.\n"
    )


if __name__ == "__main__":
    if not can_render():
        sys.exit(f"{_TOOLS}; install one of them")
    RENDERED.write_text(header(CHART) + render(CHART, VALUES))
    print(RENDERED)
