"""Joining a consortium by two files: keys stay, and nothing is signed or installed unseen."""

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from wardround_client.node.enrol import install_kit, make_request
from wardround_client.node.identity import load_identity
from wardround_common.crypto.certificates import describe
from wardround_common.crypto.signing import signing_key
from wardround_common.enrolment import MAX_FILE_BYTES, EnrolmentKit, read_request
from wardround_common.errors import ConfigError
from wardround_server.aggregator.folder import AggregatorFolder, key_beside
from wardround_server.aggregator.setup import (
    kit_for,
    make_aggregator,
    renew_server_certificate,
    spec_of,
    write_kit,
)
from wardround_server.aggregator.sites import SiteRegister

ADDRESS = "127.0.0.1:8000"


@pytest.fixture
def folder(tmp_path: Path) -> AggregatorFolder:
    made = AggregatorFolder(tmp_path / "aggregator")
    make_aggregator(made, spec_of(name="heart", host="aggregator.example"))
    return made


def site_file(path: Path, name: str = "cleveland", address: str = ADDRESS) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "site.toml"
    file.write_text(
        f'name = "{name}"\n[data]\nformat = "csv"\npath = "d.csv"\n'
        f'[node]\naggregator = "{address}"\n'
    )
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return site_file(tmp_path / "site")


def let_in(folder: AggregatorFolder, request: Path) -> EnrolmentKit:
    return kit_for(folder, SiteRegister(folder).let_in(read_request(request)), None)


def kit_of(folder: AggregatorFolder, file: Path) -> Path:
    kit = folder.path / "kit.json"
    write_kit(kit, let_in(folder, make_request(file).file))
    return kit


def changed(path: Path, **keys: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return path


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.code


def private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_request_and_a_kit_make_an_identity(folder: AggregatorFolder, file: Path) -> None:
    requested = make_request(file)
    kit = folder.path / "kit.json"
    write_kit(kit, let_in(folder, requested.file))
    assert install_kit(file, kit).consortium == "heart"
    base = file.parent
    identity = load_identity(*(base / n for n in ("node.key", "ca.pem", "site.pem", "site.key")))
    assert identity.until is not None
    (entry,) = SiteRegister(folder).all()
    assert (entry.name, entry.fingerprint) == ("cleveland", requested.fingerprint)
    for secret in (base / "node.key", base / "site.key"):
        assert private(secret)
        text = requested.file.read_text() + kit.read_text()
        assert secret.read_text().splitlines()[1] not in text, "no secret travels"


def test_asking_again_keeps_the_keys_and_renews_the_certificate(
    folder: AggregatorFolder, file: Path
) -> None:
    kit = kit_of(folder, file)
    install_kit(file, kit)
    keys = [(file.parent / name).read_bytes() for name in ("node.key", "site.key")]
    first = (file.parent / "site.pem").read_bytes()
    write_kit(kit, let_in(folder, make_request(file).file))
    install_kit(file, kit)
    assert [(file.parent / name).read_bytes() for name in ("node.key", "site.key")] == keys
    assert (file.parent / "site.pem").read_bytes() != first


def test_a_changed_request_has_another_fingerprint(file: Path, tmp_path: Path) -> None:
    ours = make_request(file)
    theirs = make_request(site_file(tmp_path / "impostor"))
    assert ours.fingerprint != theirs.fingerprint


def test_a_site_cannot_bring_the_node_key_of_another_one(
    folder: AggregatorFolder, file: Path, tmp_path: Path
) -> None:
    kit_of(folder, file)
    other = make_request(site_file(tmp_path / "other", "hungary"))
    stolen = json.loads(make_request(file).file.read_text())["node_key"]
    changed(other.file, node_key=stolen)
    assert refused(lambda: let_in(folder, other.file)) == "node_key_taken"
    assert [site.name for site in SiteRegister(folder).all()] == ["cleveland"]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"site": "hungary"}, "certificate_request"),  # signed for another name
        ({"site": "../hungary"}, "enrolment_file"),
        (
            {"certificate_request": "-----BEGIN CERTIFICATE REQUEST-----\nAA\n"},
            "certificate_request",
        ),
        ({"node_key": "no key"}, "enrolment_file"),
        ({"extra": 1}, "enrolment_file"),
        ({"format": "wardround-request/2"}, "enrolment_file"),
        ({"certificate_request": "x" * (MAX_FILE_BYTES + 1)}, "enrolment_file"),
    ],
)
def test_a_malformed_request_is_refused_and_nobody_is_let_in(
    folder: AggregatorFolder, file: Path, keys: dict[str, Any], code: str
) -> None:
    request = changed(make_request(file).file, **keys)
    assert refused(lambda: let_in(folder, request)) == code
    assert SiteRegister(folder).all() == []


def test_a_node_key_that_flower_cannot_use_is_refused(folder: AggregatorFolder, file: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for key in (rsa.generate_private_key(65_537, 2048), ec.generate_private_key(ec.SECP256K1())):
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = changed(make_request(file).file, node_key=public.decode())
        assert refused(lambda request=request: let_in(folder, request)) == ("enrolment_file")


def test_a_kit_that_does_not_fit_is_not_installed(
    folder: AggregatorFolder, file: Path, tmp_path: Path
) -> None:
    other = site_file(tmp_path / "other", "hungary")
    assert refused(lambda: install_kit(file, kit_of(folder, other))) == "kit_site"
    same_name = site_file(tmp_path / "same-name")
    make_request(file)
    assert refused(lambda: install_kit(file, kit_of(folder, same_name))) == "kit_key"
    elsewhere = site_file(file.parent, address="elsewhere:443")
    assert refused(lambda: install_kit(elsewhere, kit_of(folder, elsewhere))) == "kit_aggregator"
    site_file(file.parent)
    rogue = AggregatorFolder(tmp_path / "rogue")
    make_aggregator(rogue, spec_of(name="rogue", host="aggregator.example"))
    authority = rogue.authority.read_text()
    kit = changed(kit_of(folder, file), authority=authority)
    assert refused(lambda: install_kit(file, kit)) == "kit_certificate"
    assert not (file.parent / "ca.pem").exists(), "nothing was installed"


def test_an_authority_is_never_replaced_by_another_one(
    folder: AggregatorFolder, file: Path, tmp_path: Path
) -> None:
    install_kit(file, kit_of(folder, file))
    trusted = (file.parent / "ca.pem").read_bytes()
    rogue = AggregatorFolder(tmp_path / "rogue")
    make_aggregator(rogue, spec_of(name="heart", host="aggregator.example"))
    assert refused(lambda: install_kit(file, kit_of(rogue, file))) == "kit_authority"
    assert (file.parent / "ca.pem").read_bytes() == trusted


def test_a_coordinators_key_is_installed_once_and_never_replaced(
    folder: AggregatorFolder, file: Path
) -> None:
    kit = kit_of(folder, file)
    install_kit(file, kit)
    installed = file.parent / "coordinator.pub"
    assert installed.read_text().strip() == signing_key(folder.coordinator_key).public
    assert stat.S_IMODE(folder.coordinator_key.stat().st_mode) == 0o600
    assert refused(lambda: install_kit(file, changed(kit, coordinator="0" * 64))) == (
        "kit_coordinator"
    )
    assert installed.read_text().strip() == signing_key(folder.coordinator_key).public


def test_an_aggregators_keys_are_its_owners_and_it_is_never_made_over_another(
    folder: AggregatorFolder,
) -> None:
    for secret in (
        key_beside(folder.authority),
        key_beside(folder.certificate),
        key_beside(folder.operator),
        folder.superexec_secret,
        folder.operator_token,
    ):
        assert private(secret), secret
    before = folder.authority.read_bytes()
    again = spec_of(name="heart", host="aggregator.example")
    assert refused(lambda: make_aggregator(folder, again)) == "aggregator_exists"
    assert folder.authority.read_bytes() == before
    assert folder.load() == again, "what was chosen is what the file says"


def test_the_servers_certificate_is_renewed_before_it_ends_or_for_another_name(
    folder: AggregatorFolder,
) -> None:
    spec = folder.load()
    now = datetime.now(UTC)
    assert not renew_server_certificate(folder, spec, now)
    assert renew_server_certificate(folder, spec, now + timedelta(days=390))
    assert renew_server_certificate(folder, spec.model_copy(update={"host": "other.example"}))
    assert "other.example" in describe(folder.certificate.read_bytes()).names


def test_words_of_a_command_line_that_are_not_allowed_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(name="heart", host="two words")
    assert "host" in str(caught.value)
    assert "wardround explain aggregator.host" in str(caught.value)
