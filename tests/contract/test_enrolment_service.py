"""Enrolment over TLS: one token lets one site in, once; new keys need the old one; what is refused changes nothing."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.contract.real_superlink import free_port
from wardround_client.node import enrol as enrol_module
from wardround_client.node.enrol import enrol_by_token, make_request, rotate_keys
from wardround_client.node.identity import IdentityFiles, load_identity
from wardround_common.audit.verify import verified
from wardround_common.crypto.certificates import certify_site, make_authority, new_key, site_request
from wardround_common.enrolment import (
    EnrolmentRequest,
    EnrolmentToken,
    Redemption,
    Rotation,
    parse_token,
    read_request,
)
from wardround_common.errors import ConfigError, EnrolmentError, WardroundError
from wardround_common.spec.load import load_site
from wardround_common.types import SiteId
from wardround_server.aggregator import enrolment as service_module
from wardround_server.aggregator.enrolment import rotate, serve_enrolment
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.invitations import Invitations
from wardround_server.aggregator.membership import membership
from wardround_server.aggregator.setup import make_aggregator, spec_of
from wardround_server.aggregator.sites import SiteRegister


@dataclass(frozen=True)
class Centre:
    """An aggregator's folder whose enrolment is served.

    Attributes:
        folder: its folder.
        port: where sites enrol.
    """

    folder: AggregatorFolder
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def register(self) -> SiteRegister:
        return SiteRegister(self.folder)

    def token(self, site: str = "a", days: float = 7.0) -> EnrolmentToken:
        return Invitations(self.folder).make(site, self.address, days=days)

    def events(self) -> list[str]:
        found = verified(self.folder.audit)
        assert found.bad is None
        return [entry.event for entry in found.entries]

    def state(self) -> dict[str, bytes]:
        """Everything on disk but locks."""
        files = (path for path in self.folder.path.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if path.suffix != ".lock"}


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    folder, port = AggregatorFolder(tmp_path / "aggregator"), free_port()
    make_aggregator(folder, spec_of(name="heart", host="localhost", enrolment_port=port))
    stop = serve_enrolment(folder, port)
    yield Centre(folder, port)
    stop()


def site_file(folder: Path, centre: Centre, name: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "site.toml"
    file.write_text(
        f'name = "{name}"\n[data]\nformat = "csv"\npath = "d.csv"\n'
        f'[node]\naggregator = "127.0.0.1:8000"\nenrolment = "{centre.address}"\n'
    )
    return file


@pytest.fixture
def file(tmp_path: Path, centre: Centre) -> Path:
    return site_file(tmp_path / "site", centre)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(WardroundError) as caught:
        call()
    return caught.value.code


def keys(file: Path) -> tuple[bytes, ...]:
    names = ("node.key", "site.key", "site.pem")
    return tuple((file.parent / name).read_bytes() for name in names)


# -- tokens ----------------------------------------------------------------------------------------


def test_a_token_lets_a_site_in_and_both_ends_show_the_same_fingerprints(
    centre: Centre, file: Path
) -> None:
    text = centre.token().to_text()
    kit, fingerprint = enrol_by_token(file, parse_token(f" {text}\n"))
    (member,) = membership(centre.folder)
    assert (member.site, member.state, member.fingerprint) == ("a", "let in", fingerprint)
    assert kit.members == ("a",)
    assert (file.parent / "coordinator.pub").read_text().strip() == kit.coordinator
    paths = (file.parent / name for name in ("node.key", "ca.pem", "site.pem", "site.key"))
    assert load_identity(*paths).until is not None
    assert centre.events() == ["log_opened", "site_invited", "site_enrolled"]


def test_a_token_is_worth_nothing_a_second_time_and_the_first_answer_can_be_asked_for_again(
    centre: Centre, file: Path, tmp_path: Path
) -> None:
    token = centre.token()
    first, _ = enrol_by_token(file, token)
    before = centre.state()
    again, _ = enrol_by_token(file, token)
    assert again == first, "its answer may have been lost"
    thief = site_file(tmp_path / "thief", centre)
    assert refused(lambda: enrol_by_token(thief, token)) == "token_used"
    assert not (thief.parent / "site.pem").exists()
    assert centre.state() == before


@pytest.mark.parametrize("case", ["unknown", "expired", "other site", "cancelled", "revoked"])
def test_a_token_that_does_not_count_changes_nothing(
    centre: Centre, file: Path, tmp_path: Path, case: str
) -> None:
    token = centre.token(days=-1.0 if case == "expired" else 7.0)
    code = {"expired": "token_expired", "other site": "token_site"}.get(case, "token_unknown")
    if case == "unknown":
        token = token.model_copy(update={"secret": "0" * 32})
    if case == "other site":
        file = site_file(tmp_path / "b", centre, "b")
    if case == "cancelled":
        assert Invitations(centre.folder).cancel("a") == 1
    if case == "revoked":
        enrol_by_token(file, token)
        centre.register.revoke("a")
        Invitations(centre.folder).cancel("a")
    before = centre.state()
    assert refused(lambda: enrol_by_token(file, token)) == code
    assert centre.state() == before


def test_a_token_kept_by_a_site_that_was_revoked_does_not_bring_it_back(
    centre: Centre, file: Path
) -> None:
    token = centre.token()
    enrol_by_token(file, token)
    centre.register.revoke("a")
    assert refused(lambda: enrol_by_token(file, token)) == "token_used"
    assert centre.register.all() == []


def test_many_who_come_with_one_token_at_the_same_time_are_one(
    centre: Centre, tmp_path: Path
) -> None:
    token, outcomes = centre.token(), list[str]()
    files = [site_file(tmp_path / f"s{number}", centre) for number in range(6)]
    requests = [read_request(make_request(each).file) for each in files]

    def come(request: EnrolmentRequest) -> None:
        try:
            Invitations(centre.folder).redeem(Redemption(secret=token.secret, request=request))
            outcomes.append("")
        except (EnrolmentError, ConfigError) as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=come, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("") == 1
    assert set(outcomes) <= {"", "token_used", "sites_busy"}
    assert centre.events().count("site_enrolled") == 1


def test_a_site_takes_no_other_authority_than_the_tokens(centre: Centre, file: Path) -> None:
    pinned = centre.token().model_copy(update={"authority_sha256": "1" * 64})
    assert refused(lambda: enrol_by_token(file, pinned)) == "enrol_authority"
    assert centre.register.all() == []
    assert not (file.parent / "ca.pem").exists()


@pytest.mark.parametrize("text", ["", "wardround-1-", "wardround-1-AAAA", "x" * 400])
def test_half_a_token_is_none(text: str) -> None:
    assert refused(lambda: parse_token(text)) == "token_form"


def test_nobody_there_is_said_so(centre: Centre, file: Path) -> None:
    gone = centre.token().model_copy(update={"address": f"127.0.0.1:{free_port()}"})
    assert refused(lambda: enrol_by_token(file, gone)) == "enrol_unreachable"


# -- rotation --------------------------------------------------------------------------------------


def test_new_keys_take_the_place_of_the_old_ones_at_both_ends(centre: Centre, file: Path) -> None:
    enrol_by_token(file, centre.token())
    centre.register.pin(SiteId("a"), "5" * 64)
    before, old = keys(file), centre.register.find("a")
    _, fingerprint = rotate_keys(file)
    after, new = keys(file), centre.register.find("a")
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert old is not None
    assert new is not None
    assert new.fingerprint == fingerprint
    assert new.node_key != old.node_key
    assert new.signing_key == old.signing_key == "5" * 64, "the worker has not changed"
    assert [path.stem for path in centre.folder.revoked.iterdir()] == list(old.serials)
    assert not centre.register.has_tls_key(SiteId("a"), before[2])
    assert centre.register.has_tls_key(SiteId("a"), after[2])
    assert not list(file.parent.glob("*.new"))
    assert centre.events()[-1] == "site_rotated"


def test_new_keys_whose_answer_was_lost_are_asked_for_again(
    centre: Centre, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_by_token(file, centre.token())
    real, before = enrol_module.send_rotation, keys(file)

    def lost(*arguments: Any) -> Any:
        real(*arguments)
        raise ConfigError("the line died", code="enrol_unreachable")

    monkeypatch.setattr(enrol_module, "send_rotation", lost)
    assert refused(lambda: rotate_keys(file)) == "enrol_unreachable"
    assert keys(file) == before
    known, at_centre = centre.register.find("a"), centre.state()
    monkeypatch.setattr(enrol_module, "send_rotation", real)
    rotate_keys(file)
    assert keys(file) != before
    assert centre.register.find("a") == known
    assert centre.state() == at_centre


@pytest.mark.parametrize("at", range(1, 7))
def test_killed_anywhere_while_new_keys_are_installed_asking_again_ends_it(
    centre: Centre, file: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    enrol_by_token(file, centre.token())
    before, num_calls = keys(file), 0

    class KilledError(BaseException):
        pass

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == at:
                raise KilledError
            return real(*arguments, **words)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(enrol_module, "replace_file", counted(enrol_module.replace_file))
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(enrol_module, "fsync_folder", counted(enrol_module.fsync_folder))
        with pytest.raises(KilledError):
            rotate_keys(file)
    rotate_keys(file)
    site = centre.register.find("a")
    assert site is not None
    assert keys(file) != before
    assert centre.register.has_tls_key(SiteId("a"), keys(file)[2])
    assert site.fingerprint == read_request(make_request(file).file).fingerprint
    assert not list(file.parent.glob("*.new"))


def rotation(
    file: Path, signer: bytes | None = None, certificate: bytes | None = None, **fields: Any
) -> Rotation:
    """What ``--rotate`` sends, with parts of it changed."""
    base, name = file.parent, load_site(file).name
    request = EnrolmentRequest(
        site=name,
        node_key=read_request(make_request(file).file).node_key,
        certificate_request=site_request(SiteId(name), new_key()).decode(),
    )
    key = load_pem_private_key(signer or (base / "site.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(Rotation.document(request), ec.ECDSA(hashes.SHA256())).hex()
    made = Rotation(
        request=request,
        certificate=(certificate or (base / "site.pem").read_bytes()).decode(),
        signature=signature,
    )
    return made.model_copy(update=fields)


@pytest.mark.parametrize(
    "case",
    [
        "other key",
        "other request",
        "expired",
        "other authority",
        "replayed",
        "other site",
        "revoked",
    ],
)
def test_new_keys_that_the_present_key_does_not_ask_for_are_refused(
    centre: Centre, file: Path, tmp_path: Path, case: str
) -> None:
    enrol_by_token(file, centre.token())
    key = (file.parent / "site.key").read_bytes()
    sent = rotation(file)
    if case == "other key":
        sent = rotation(file, signer=new_key())
    if case == "other request":
        sent = sent.model_copy(update={"request": rotation(file).request})
    if case in {"expired", "other authority"}:
        authority = (
            centre.folder.read_authority() if case == "expired" else make_authority("elsewhere")
        )
        now = datetime.now(UTC) - timedelta(days=800 if case == "expired" else 0)
        wanted = site_request(SiteId("a"), key)
        sent = rotation(file, certificate=certify_site(authority, SiteId("a"), wanted, now=now))
    if case == "replayed":
        rotate_keys(file)
        rotate_keys(file)
    if case == "other site":
        other = site_file(tmp_path / "b", centre, "b")
        enrol_by_token(other, centre.token("b"))
        stolen = other.parent
        sent = rotation(
            file, (stolen / "site.key").read_bytes(), (stolen / "site.pem").read_bytes()
        )
    if case == "revoked":
        centre.register.revoke("a")
    before = centre.state()
    assert refused(lambda: rotate(centre.folder, sent)) == "rotation_key"
    assert centre.state() == before


def test_twin_without_a_look_at_the_signature_anybody_gets_new_keys(
    centre: Centre, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_by_token(file, centre.token())
    monkeypatch.setattr(service_module, "_signer", lambda folder, sent: object())
    before = centre.register.find("a")
    rotate(centre.folder, rotation(file, signer=new_key()))
    assert centre.register.find("a") != before


# -- the wire --------------------------------------------------------------------------------------


def test_what_is_no_request_is_refused_by_a_code_and_changes_nothing(centre: Centre) -> None:
    token = centre.token()
    trust = ssl.create_default_context(cafile=str(centre.folder.authority))
    before = centre.state()
    bodies = {
        b"": "request_form",
        b"{}": "request_form",
        b"\xff" * 100: "request_form",
        json.dumps({"secret": token.secret, "request": {}}).encode(): "request_form",
        b"[" * 60_000: "request_form",
        b" " * 100_000: "request_size",
    }
    with httpx.Client(verify=trust, base_url=f"https://localhost:{centre.port}") as client:
        for body, code in bodies.items():
            for path in ("/v1/enrol", "/v1/enrol/rotate"):
                answer = client.post(path, content=body)
                assert (answer.status_code, answer.json()) == (403, {"code": code})
        assert client.get("/v1/enrol").status_code == 405
        assert client.get("/docs").status_code == 404
        assert client.get("/openapi.json").status_code == 404
    assert centre.state() == before


def test_new_files_that_fit_end_a_nodes_life_and_half_of_them_do_not(
    centre: Centre, file: Path
) -> None:
    enrol_by_token(file, centre.token())
    spec = load_site(file).node
    assert spec is not None
    stop = threading.Event()
    with IdentityFiles(spec, file.parent).ends_with(stop) as life:
        own = (file.parent / "site.key").read_bytes()
        (file.parent / "site.key").write_bytes(new_key())
        assert not life.wait(1.5), "a key without its certificate"
        (file.parent / "site.key").write_bytes(own)
        rotate_keys(file)
        assert life.wait(5.0)
    with IdentityFiles(spec, file.parent).ends_with(stop) as life:
        assert not life.wait(1.5)
        stop.set()
        assert life.wait(1.0)
