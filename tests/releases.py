"""What has left a site: every answer that its node got from its worker, written down by the node.

Beside it, in ``.wire``, is everything of it but arrays: receipts and failures, byte for byte.

What it promises: a line is in the file before the node does anything with the answer, so nothing can
leave the site that is not in it, whatever is killed. Nothing of node or worker is replaced. A receipt
names its array by digest and carries the seconds that the step took: a second computation of a step
has another receipt, even where its array is the same.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround_client.airlock.client import AirlockAnswer
from wardround_client.node import process
from wardround_client.node.node import SiteNode
from wardround_client.node.stream import StreamSessions
from wardround_common.types import sha256_hex


@dataclass(frozen=True, slots=True)
class Release:
    """An answer that the node got.

    Attributes:
        run, step, kind, round: what was asked.
        question: digest of the manifest.
        receipt: digest of the receipt.
        way: how the question came: ``stream`` or ``messages``.
    """

    run: str
    step: int
    kind: str
    round: int
    question: str
    receipt: str
    way: str


def releases_of(file: Path, run: str) -> list[Release]:
    """What a site gave for a run, in its order."""
    if not file.exists():
        return []
    found = [Release(**json.loads(line)) for line in file.read_text().splitlines()]
    return [each for each in found if each.run == run]


def released_twice(releases: Iterable[Release]) -> list[Release]:
    """Those whose step was answered by more than one receipt."""
    receipts: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    steps = list(releases)
    for each in steps:
        receipts[each.run, each.step].add(each.receipt)
    return [each for each in steps if len(receipts[each.run, each.step]) > 1]


class _Noted:
    """An airlock whose answers are written down."""

    def __init__(self, airlock: Any, way: str, file: Path) -> None:
        self._airlock = airlock
        self._way = way
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._airlock, name)

    def execute(self, document: bytes, *rest: Any, **more: Any) -> AirlockAnswer:
        answer: AirlockAnswer = self._airlock.execute(document, *rest, **more)
        with self._file.with_suffix(".wire").open("ab") as wire:
            wire.write(b"\n".join((answer.document, answer.failure.encode(), b"")))
        if not answer.failure:
            asked = json.loads(document)
            release = {name: asked[name] for name in ("run", "step", "kind", "round")}
            release |= {"question": sha256_hex(document), "receipt": sha256_hex(answer.document)}
            with self._file.open("a") as file:
                file.write(json.dumps({**release, "way": self._way}) + "\n")
        return answer


def run_noting_node(site: Path, releases: Path) -> None:
    """A site's node as it is, which writes down what it gets from its worker."""

    def node(connection: Any, airlock: Any, *rest: Any, **more: Any) -> SiteNode:
        return SiteNode(connection, _Noted(airlock, "messages", releases), *rest, **more)

    def sessions(site: str, identity: Any, airlock: Any, **more: Any) -> StreamSessions:
        return StreamSessions(site, identity, _Noted(airlock, "stream", releases), **more)

    process.SiteNode = node  # type: ignore[assignment,misc]
    process.StreamSessions = sessions  # type: ignore[assignment,misc]
    process.run_node(site, same_user=True)
