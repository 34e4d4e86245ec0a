"""Where the server of tensor streams listens, and what its invitations say about it."""

import socket
from pathlib import Path

import pytest

from tests.contract.real_superlink import free_port
from tests.streams import authority
from tests.support import RUN
from wardround_common.errors import RoundError
from wardround_common.types import SiteId
from wardround_server.stream.server import StreamServer

SITE = SiteId("a")


def server(bind: str, spool: Path, public: str | None = None) -> StreamServer:
    identity = authority().server()
    return StreamServer(bind, identity, run=RUN, sites=(SITE,), spool=spool, public=public)


@pytest.mark.parametrize("public", [None, "aggregator.example:443"])
def test_it_listens_whatever_name_sites_reach_it_by(tmp_path: Path, public: str | None) -> None:
    bind = f"127.0.0.1:{free_port()}"
    opened = server(bind, tmp_path, public)
    try:
        assert opened.invite(SITE).address == (public or bind)
        host, _, port = bind.partition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    finally:
        opened.close()


def test_a_port_that_another_run_has_is_said(tmp_path: Path) -> None:
    bind = f"127.0.0.1:{free_port()}"
    opened = server(bind, tmp_path)
    try:
        with pytest.raises(RoundError) as caught:
            server(bind, tmp_path, "aggregator.example:443")
        assert caught.value.code == "stream_port"
    finally:
        opened.close()
