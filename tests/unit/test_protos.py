"""The generated code of the gRPC services is that of their .proto files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted(
    path for part in ("common", "client", "server") for path in (ROOT / part).rglob("*.proto")
)


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_the_generated_code_is_what_make_proto_generates(proto: Path, tmp_path: Path) -> None:
    root = next(parent for parent in proto.parents if parent.parent == ROOT)
    made = sorted(proto.parent.glob(f"{proto.stem}_pb2*.py*"))
    assert len(made) in {2, 3}, "messages, their types and perhaps a service"
    options = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    options += [f"--grpc_python_out={tmp_path}"] if len(made) == 3 else []
    includes = [f"-I{ROOT / 'common'}", f"-I{ROOT / 'client'}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *includes, *options, str(proto)], check=True
    )
    for path in made:
        assert (tmp_path / path.relative_to(root)).read_text() == path.read_text(), (
            "run `make proto`"
        )


def test_every_proto_file_is_in_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    assert len(PROTOS) >= 3
    for proto in PROTOS:
        assert str(proto.relative_to(ROOT)) in text
