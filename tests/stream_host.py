"""An aggregator's stream server in a process of its own: its memory is nobody else's.

The child reads a JSON line with who it is, then one for each question that it is to ask; it writes
invitations as they are sent, and for each question the answers, the seconds and its memory.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.pki import Authority
from tests.streams import PAUSES, FakeAirlock, NoMessages
from tests.support import RUN, FakeSite
from wardround_client.node.stream import StreamSessions
from wardround_common.stream.limits import Identity
from wardround_common.types import SiteId
from wardround_common.wire.session import SessionInvite

_IDENTITY = ("certificate", "key", "authority")
NO_OPTIONS: Mapping[str, int] = MappingProxyType({})


class HostedStream:
    """The child, and honest nodes of its sites in this process.

    Args:
        folder: for the spool.
        authority: of all certificates.
        sites: names; each has an honest node and is asked.
        others: of the roster beside them; they have no node.
        options: gRPC's of the server that are not the real ones.

    Attributes:
        invites: site -> its invitation, from the first question on.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        sites: Sequence[str],
        others: Sequence[str] = (),
        options: Mapping[str, int] = NO_OPTIONS,
    ) -> None:
        self._nodes = {
            name: StreamSessions(name, authority.site(name), FakeAirlock(FakeSite(name)), PAUSES)
            for name in sites
        }
        self.invites: dict[str, SessionInvite] = {}
        self._step = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stream_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        identity = authority.server()
        wanted = {name: getattr(identity, name).decode() for name in _IDENTITY}
        self._write(
            wanted
            | {"folder": str(folder), "sites": list(sites), "others": list(others)}
            | {"options": dict(options)}
        )

    @property
    def port(self) -> int:
        """Where the child listens."""
        return int(next(iter(self.invites.values())).address.rpartition(":")[2])

    def ask(self) -> dict[str, Any]:
        """One question to all sites.

        Returns:
            ``failures`` (site -> code or None), ``seconds``, and ``peak_bytes``: the largest
            memory since the answer before.
        """
        self._write({"step": self._step})
        self._step += 1
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found: dict[str, Any] = json.loads(line)
            if "failures" in found:
                return found
            for site, text in found.items():
                self.invites[site] = SessionInvite.model_validate_json(text)
                if site in self._nodes:
                    self._nodes[site].on_session(text.encode())
        raise RuntimeError("the child has ended")

    def close(self) -> None:
        """End the child and the nodes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
        for node in self._nodes.values():
            node.close()

    def _write(self, words: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()


def main() -> None:
    """The child."""
    from tests.contract.test_carrier_contract import question
    from wardround_server.stream import server
    from wardround_server.stream.carrier import Patience, StreamCarrier

    wanted = json.loads(sys.stdin.readline())
    server.SERVER_OPTIONS[:] = (dict(server.SERVER_OPTIONS) | wanted["options"]).items()
    sites = [SiteId(name) for name in wanted["sites"]]
    served = server.StreamServer(
        "127.0.0.1:0",
        Identity(*(wanted[name].encode() for name in _IDENTITY)),
        run=RUN,
        sites=[*sites, *map(SiteId, wanted["others"])],
        spool=Path(wanted["folder"]),
    )

    def invite(invites: Mapping[SiteId, SessionInvite]) -> None:
        texts = {site: each.to_bytes().decode() for site, each in invites.items()}
        print(json.dumps(texts), flush=True)

    invite({SiteId(site): served.invite(SiteId(site)) for site in wanted["others"]})
    patience = Patience(again_s=0.1)
    carrier = StreamCarrier(NoMessages(), served, invite, patience)
    for line in sys.stdin:
        started = time.perf_counter()
        answers = carrier.ask(question(json.loads(line)["step"], sites=sites), 10.0)
        failures = {answer.site: answer.failure for answer in answers}
        seconds = time.perf_counter() - started
        words = {"failures": failures, "seconds": seconds, "peak_bytes": _peak_bytes()}
        Path("/proc/self/clear_refs").write_text("5")
        print(json.dumps(words), flush=True)
    carrier.close()


def _peak_bytes() -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))


if __name__ == "__main__":
    main()
