"""A plain Flower app on a stock SuperLink and two stock SuperNodes: TLS, node authentication."""

import datetime as dt
import ipaddress
import itertools
import os
import sys
import tempfile
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from benchmarks.rounds.processes import Processes, free_port
from benchmarks.rounds.workloads import SITES

_PROGRAMS = Path(sys.executable).parent
_APP = Path(__file__).parent / "plain_app"
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def measure(
    num_tensors: int, num_values: int, rounds: int, *, backbone: Path | None = None
) -> list[float]:
    """Run the app over loopback.

    Args:
        num_tensors: that are exchanged.
        num_values: float32, all tensors together.
        rounds: how many are measured, after the first.
        backbone: a pretrained model that clients load in each message.

    Returns:
        Wall seconds of each round but the first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        authority = _certificates(folder)
        address, clock = f"127.0.0.1:{port}", folder / "clock"
        home = {**_QUIET, "FLWR_HOME": str(folder / "flwr")}
        # Flower starts its apps by name.
        home["PATH"] = os.pathsep.join((str(_PROGRAMS), os.environ.get("PATH", "")))
        with Processes(folder, home) as processes:
            words = [str(_PROGRAMS / "flower-superlink"), "--host", "127.0.0.1"]
            words += ["--port", str(port), "--enable-supernode-auth", "--database", "state.db"]
            words += ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
            words += ["--ssl-ca-certfile", "ca.pem", "--disable-runtime-dependency-installation"]
            processes.start(words, "superlink.log")
            processes.until(
                lambda: _is_healthy(address, folder / "ca.pem"), "the SuperLink answers"
            )
            control = ControlHttpClient.from_server_address(
                address,
                insecure=False,
                root_certificates=authority,
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
            for site in SITES:
                key = _node_key(folder / f"{site}.key")
                request = RegisterNodeRequest(
                    public_key=public_key_to_bytes(key.public_key()), name=site
                )
                control.RegisterNode(request)
                words = [str(_PROGRAMS / "flower-supernode"), "--superlink", address]
                words += ["--root-certificates", "ca.pem", "--port", str(free_port())]
                words += ["--auth-supernode-private-key", f"{site}.key"]
                processes.start(words, f"{site}.log")
            settings = {
                "rounds": rounds + 1,
                "tensors": num_tensors,
                "values": num_values,
                "backbone": "" if backbone is None else str(backbone),
                "clock": str(clock),
            }
            control.StartRun(StartRunRequest(fab=Fab(content=_bundle(settings))))
            processes.until(lambda: len(_stamps(clock)) == rounds + 2, "the app's rounds")
        stamps = _stamps(clock)[1:]
        return [after - before for before, after in itertools.pairwise(stamps)]


def _stamps(clock: Path) -> list[float]:
    return [float(line) for line in clock.read_text().splitlines()] if clock.exists() else []


def _bundle(settings: dict[str, str | int]) -> bytes:
    """The app with its settings."""
    project = (_APP / "pyproject.toml").read_text()
    head, _, _ = project.partition("[tool.flwr.app.config]")
    lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in settings.items()]
    files = {"pyproject.toml": (head + "[tool.flwr.app.config]\n" + "\n".join(lines)).encode()}
    for path in sorted((_APP / "plainapp").glob("*.py")):
        files[f"plainapp/{path.name}"] = path.read_bytes()
    files["LICENSE"] = b"Apache-2.0\n"
    return bytes(build_fab_from_files(files)[0])


def _is_healthy(address: str, authority: Path) -> bool:
    try:
        return httpx.get(f"https://{address}/health", verify=str(authority), timeout=1.0).is_success
    except httpx.HTTPError:
        return False


def _node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return key


def _certificates(folder: Path) -> bytes:
    """An authority and a server's certificate by it; returns the authority's."""
    now = dt.datetime.now(dt.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {
        name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"plain {name}")])
        for name in keys
    }
    made = {}
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        )
        if name == "server":
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made[name] = builder.sign(keys["ca"], hashes.SHA256())
    pem = {name: each.public_bytes(serialization.Encoding.PEM) for name, each in made.items()}
    for name, data in pem.items():
        (folder / f"{name}.pem").write_bytes(data)
    (folder / "server.key").write_bytes(
        keys["server"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem["ca"]
