"""The airlock's Unix socket: where it may be, who may use it, and how it is found to be alive."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.airlocks import Airlock, Hospital
from wardround_client.airlock.client import AirlockClient, AirlockUnavailable
from wardround_client.airlock.limits import address
from wardround_client.airlock.server import SERVICE, AirlockServer
from wardround_client.airlock.service import AirlockService
from wardround_common.errors import ConfigError

OTHER_RUN = "fedcba9876543210"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


@pytest.fixture
def airlock(hospital: Hospital) -> Iterator[Airlock]:
    with hospital.airlock() as airlock:
        yield airlock


def test_the_socket_is_for_its_user_and_the_group_of_its_folder(hospital: Hospital) -> None:
    hospital.socket.parent.mkdir()
    if os.geteuid() == 0:
        os.chown(hospital.socket.parent, -1, 12345)
    with hospital.airlock():
        found = hospital.socket.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == hospital.socket.parent.stat().st_gid


def test_a_folder_that_the_worker_makes_lets_its_group_in(hospital: Hospital) -> None:
    before = os.umask(0o077)
    try:
        with hospital.airlock():
            assert stat.S_IMODE(hospital.socket.parent.stat().st_mode) == 0o750
    finally:
        os.umask(before)


def test_a_socket_that_was_left_behind_is_replaced_and_anything_else_is_not(
    hospital: Hospital,
) -> None:
    with hospital.airlock() as airlock:
        hospital.socket.rename(left := hospital.folder / "left")
        left.rename(hospital.socket)
        assert airlock.client.status().site == "a"
    hospital.socket.parent.mkdir(exist_ok=True)
    hospital.socket.write_text("precious")
    with pytest.raises(ConfigError) as caught:
        AirlockServer(AirlockService(hospital.desk(), print), hospital.socket)
    assert caught.value.code == "worker_socket"
    assert hospital.socket.read_text() == "precious"


def test_a_socket_where_somebody_listens_is_not_taken_away(airlock: Airlock) -> None:
    with pytest.raises(ConfigError, match="another process listens there"):
        AirlockServer(AirlockService(airlock.desk, print), airlock.hospital.socket)
    assert airlock.client.status().site == "a"


@pytest.mark.parametrize("name", ["x" * 107, "one,two"])
def test_a_path_that_no_socket_can_have_is_bad_input(
    hospital: Hospital, tmp_path: Path, name: str
) -> None:
    for make in (
        lambda: AirlockServer(AirlockService(hospital.desk(), print), tmp_path / name),
        lambda: AirlockClient(tmp_path / name),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.code == "worker_socket"


@pytest.mark.parametrize("folder", ["sp ace", "100%25", "n#1", "wh?", "Köln"])
def test_a_path_may_have_any_other_character(hospital: Hospital, folder: str) -> None:
    hospital.socket = hospital.folder / folder / "airlock.sock"
    with hospital.airlock() as airlock:
        assert airlock.client.status().site == "a"
        assert hospital.socket.exists()


def test_missing_folders_above_a_socket_are_made_so_that_this_user_can_enter_them(
    hospital: Hospital,
) -> None:
    hospital.socket = hospital.folder / "run" / "airlock" / "airlock.sock"
    with hospital.airlock():
        assert stat.S_IMODE(hospital.socket.parent.parent.stat().st_mode) & 0o700 == 0o700


def test_the_standard_health_service_answers(airlock: Airlock) -> None:
    with grpc.insecure_channel(address(airlock.hospital.socket)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5.0)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="another"), timeout=5.0)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_worker_that_is_not_there_is_unavailable_and_no_failure(hospital: Hospital) -> None:
    client = AirlockClient(hospital.socket)
    for call in (
        client.status,
        lambda: client.stop(OTHER_RUN),
        lambda: client.execute(b"{}", deadline_s=1.0),
    ):
        with pytest.raises(AirlockUnavailable):
            call()
    client.close()


def test_what_the_worker_has_and_did_is_told(airlock: Airlock) -> None:
    asked = airlock.hospital.question()
    answer = airlock.ask(asked)
    status = airlock.client.status()
    assert list(status.federations) == [airlock.hospital.world.spec.digest()]
    assert status.steps_answered == 1
    assert status.bytes_in == len(asked.document) + asked.array.nbytes
    assert status.bytes_out == len(answer.receipt) + len(answer.array)


def test_a_site_that_is_in_no_roster_does_not_start(hospital: Hospital) -> None:
    text = hospital.file.read_text()
    hospital.file.write_text(text.replace('name = "a"', 'name = "nobody"'))
    with pytest.raises(ConfigError, match="does not have 'nobody'"):
        hospital.desk()
