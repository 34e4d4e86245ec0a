"""What a process on a host can do: run there as some user, it tries, and prints what came of it.

::

    probe.py connect HOST PORT       "connected", or the name of the error
    probe.py ports HOST              all TCP ports that take a connection
    probe.py read PATH...            path -> "read", or the name of the error
    probe.py ask FILE                requests as FILE describes them, and the answers' beginnings
"""

import base64
import contextlib
import errno
import http.client
import json
import selectors
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

_AT_ONCE = 500


def connect(host: str, port: str) -> str:
    """Try to open a connection."""
    try:
        socket.create_connection((host, int(port)), timeout=3.0).close()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "connected"


def ports(host: str) -> list[int]:
    """Try all ports."""
    found: list[int] = []
    for first in range(1, 65_536, _AT_ONCE):
        with selectors.DefaultSelector() as waiting:
            for port in range(first, min(first + _AT_ONCE, 65_536)):
                tried = socket.socket()
                tried.setblocking(False)
                tried.connect_ex((host, port))
                waiting.register(tried, selectors.EVENT_WRITE, port)
            while waiting.get_map():
                for key, _ in waiting.select(3.0):
                    opened = key.fileobj
                    assert isinstance(opened, socket.socket)
                    if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        found.append(key.data)
                    waiting.unregister(opened)
                    opened.close()
    return sorted(found)


def read(*paths: str) -> dict[str, str]:
    """Try to read files, or to list folders."""
    result = {}
    for name in paths:
        path = Path(name)
        try:
            if path.is_dir():
                list(path.iterdir())
            else:
                with path.open("rb") as file:
                    file.read(16)
        except OSError as error:
            result[name] = errno.errorcode[error.errno or 0]
        else:
            result[name] = "read"
    return result


def ask(file: str) -> list[list[Any]]:
    """Send requests; of each, the status and the beginning of the answer."""
    wanted = json.loads(Path(file).read_bytes())
    trust = ssl.create_default_context(cafile=wanted["ca"])
    if wanted["certificate"]:
        trust.load_cert_chain(wanted["certificate"], wanted["key"])
    return [_asked(trust, wanted["address"], *each) for each in wanted["requests"]]


def _asked(
    trust: ssl.SSLContext, address: str, method: str, path: str, headers: dict[str, str], body: str
) -> list[Any]:
    connection = http.client.HTTPSConnection(address, timeout=10.0, context=trust)
    try:
        connection.request(method, path, base64.b64decode(body), headers)
        answer = connection.getresponse()
        return [answer.status, answer.read(300).decode("latin-1")]
    except (OSError, http.client.HTTPException) as error:
        return [0, type(error).__name__]
    finally:
        connection.close()


if __name__ == "__main__":
    verbs: Any = {"connect": connect, "ports": ports, "read": read, "ask": ask}
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(verbs[sys.argv[1]](*sys.argv[2:])))
