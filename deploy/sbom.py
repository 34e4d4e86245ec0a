"""The bill of materials of what the product needs to run, as CycloneDX 1.6 in JSON.

    python deploy/sbom.py OUT.json

1. It lists the packages that are installed in this environment and that ``wardround`` asks for, itself or
   through others, without any extra; what only developers need is left out.
2. With ``SOURCE_DATE_EPOCH`` set, the same environment gives the same bytes.
"""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT: Final = "wardround"
PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"


def needed(product: str = PRODUCT) -> set[str]:
    """Names, in canonical form, of the installed packages that a package needs to run, and its own."""
    found: set[str] = set()
    waiting = [(product, frozenset[str]())]
    asked: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = each = waiting.pop()
        if each in asked:
            continue
        asked.add(each)
        try:
            requirements = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue  # for another platform, or part of an extra that is not installed
        found.add(canonicalize_name(name))
        waiting += [
            (requirement.name, frozenset(requirement.extras))
            for requirement in requirements
            if _applies(requirement, extras)
        ]
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def whole_bill() -> dict[str, Any]:
    """The bill of everything that is installed here."""
    words = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    words += ["--pyproject", str(PYPROJECT), "--output-file", "-", sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


def limited(bill: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A bill with the components of these names only, and what they depend on among themselves."""
    root = bill["metadata"]["component"]
    kept = [
        each
        for each in bill["components"]
        if canonicalize_name(each["name"]) in names - {root["name"]}
        and each["version"] == version(each["name"])  # of two, the one that is imported
    ]
    refs = {each["bom-ref"] for each in kept} | {root["bom-ref"]}
    links = [
        link | {"dependsOn": [ref for ref in link["dependsOn"] if ref in refs]}
        if "dependsOn" in link
        else link
        for link in bill["dependencies"]
        if link["ref"] in refs
    ]
    return bill | {"components": kept, "dependencies": links}


if __name__ == "__main__":
    text = json.dumps(limited(whole_bill(), needed()), indent=2, sort_keys=True) + "\n"
    Path(sys.argv[1]).write_text(text)
    print(sys.argv[1])
