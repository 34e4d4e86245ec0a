"""The doctor: each planted fault is found by its code with what to do, and a healthy site has none."""

import dataclasses
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
from click.testing import CliRunner
from PIL import Image

from tests.airlocks import Hospital
from tests.contract.real_superlink import free_port
from tests.policies import write_policy
from tests.support import write_dataset
from wardround_client.cli import site as site_verbs
from wardround_client.doctor import check as check_module
from wardround_client.doctor import machine as machine_module
from wardround_client.doctor import rehearsal as rehearsal_module
from wardround_client.doctor.check import check_site
from wardround_client.doctor.findings import Checkup
from wardround_client.node.enrol import install_kit, make_request
from wardround_common.audit.log import AuditLog
from wardround_common.crypto.certificates import certify_site, make_authority, new_key
from wardround_common.enrolment import read_request
from wardround_common.types import SiteId
from wardround_server.aggregator.enrolment import serve_enrolment
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.setup import kit_for, make_aggregator, spec_of, write_kit
from wardround_server.aggregator.sites import SiteRegister


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site that has enrolled, with a policy and data."""
    folder = tmp_path_factory.mktemp("doctor")
    made = Hospital(folder / "site", data={"validation_fraction": 0.2})
    write_dataset(made.folder / "data", ["a", "b", "c"], rows=40)
    port = free_port()
    address = f"127.0.0.1:{port}"
    made.file.write_text(made.file.read_text() + f'\n[node]\naggregator = "{address}"\n')
    centre = AggregatorFolder(folder / "centre")
    make_aggregator(centre, spec_of(name="heart", host="localhost"))
    request = read_request(make_request(made.file).file)
    kit = folder / "kit.json"
    write_kit(kit, kit_for(centre, SiteRegister(centre).let_in(request), address))
    install_kit(made.file, kit)
    coordinator = (made.folder / "coordinator.pub").read_text().strip()
    write_policy(made.folder, allow__coordinators=[coordinator], limits__min_subjects=5)
    (folder / "authority.pem").write_bytes(centre.read_authority().certificate)
    (folder / "authority.key").write_bytes(centre.read_authority().key)
    stop = serve_enrolment(centre, port)  # something that answers, by the right authority
    yield folder
    stop()


@pytest.fixture
def folder(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy / "site", tmp_path / "site"))


def edit(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = tomllib.loads(file.read_text())
    change(content)
    file.write_text(tomli_w.dumps(content))


def table(content: dict[str, object], name: str) -> dict[str, object]:
    found = content.setdefault(name, {})
    assert isinstance(found, dict)
    return found


def in_site(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "site.toml", lambda c: table(c, name).update(values))


def in_federation(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "federation.toml", lambda c: table(c, name).update(values))


def in_policy(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "policy.toml", lambda c: table(c, name).update(values))


def in_table(old: str, new: str, count: int = -1) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        file = folder / "data" / "table.csv"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, count))

    return plant


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def certificate(healthy: Path, **options: object) -> Callable[[Path], object]:
    """Another certificate for the key that is there."""

    def plant(folder: Path) -> None:
        from wardround_common.crypto.certificates import Issued, site_request

        authority = Issued(
            (healthy / "authority.pem").read_bytes(), (healthy / "authority.key").read_bytes()
        )
        if options.get("elsewhere"):
            authority = make_authority("elsewhere")
        key = new_key() if options.get("other_key") else (folder / "site.key").read_bytes()
        name = SiteId(str(options.get("name", "a")))
        now = options.get("now")
        assert now is None or isinstance(now, datetime)
        made = certify_site(authority, name, site_request(name, key), now=now)
        (folder / "site.pem").write_bytes(made)

    return plant


def shared_subject(folder: Path) -> None:
    """A published split with one patient on both sides."""
    edit(
        folder / "federation.toml",
        lambda c: table(c, "data").update({"split": {"kind": "column", "column": "part"}}),
    )
    file = folder / "data" / "table.csv"
    head, *rows = file.read_text().splitlines()
    lines = [f"{head},part"]
    for place, row in enumerate(rows):
        lines.append(f"{row},{'test' if place % 4 == 0 else 'train'}")
    lines.append(f"{rows[0]},train")
    file.write_text("\n".join(lines) + "\n")


def copies(folder: Path) -> None:
    """The same measurements under many names."""
    file = folder / "data" / "table.csv"
    head, *rows = file.read_text().splitlines()
    mine = [row for row in rows if row.split(",")[1] == "a"]
    more = [f"copy{place},{row.split(',', 1)[1]}" for place, row in enumerate(mine)]
    file.write_text("\n".join([head, *rows, *more]) + "\n")


def images(folder: Path, turned: bool = False, constant: bool = False, deep: bool = False) -> None:
    """Another federation, of images."""
    place = folder / "data"
    lines = ["id,hospital,file,label"]
    for number in range(24):
        image = Image.effect_noise((32, 32), 60.0 + number)
        if constant and number < 6:
            image = Image.new("L", (32, 32), 90)
        if deep and number == 3:
            image = Image.new("I;16", (32, 32))
        exif = Image.Exif()
        if turned and number == 5:
            exif[0x0112] = 6
        image.save(place / f"{number}.png", exif=exif)
        hospital = "a" if number < 16 else "bc"[number % 4 // 2]
        lines.append(f"p{number},{hospital},{number}.png,{('no', 'yes')[number % 2]}")
    (place / "table.csv").write_text("\n".join(lines) + "\n")

    def change(content: dict[str, object]) -> None:
        content["data"] = {"modality": "image", "subject": "id", "label": "label", "size": 32}
        content["backbone"] = {"ref": "timm:resnet18", "sha256": "5" * 64}

    edit(folder / "federation.toml", change)


@dataclasses.dataclass(frozen=True)
class Planted:
    """A fault, and what has to be said of it.

    Attributes:
        plant: puts it into a site's folder.
        code: of the finding.
        names: words that the message has: the file or field, and what to do.
    """

    plant: Callable[[Path], object]
    code: str
    names: tuple[str, ...]


PLANTED: dict[str, Planted] = {
    "site file": Planted(
        lambda f: (f / "site.toml").write_text("name = 3\n"), "site_file", ("site.toml", "name")
    ),
    "no policy": Planted(without("policy.toml"), "no_policy", ("policy.toml", "--draft")),
    "policy file": Planted(in_policy("limits", min_cell=-1), "policy_file", ("min_cell",)),
    "no federation": Planted(without("federation.toml"), "file_missing", ("federation.toml",)),
    "federation file": Planted(
        in_federation("rounds", count=-3), "federation_file", ("rounds.count",)
    ),
    "other roster": Planted(
        lambda f: edit(f / "site.toml", lambda c: c.update(name="z")), "not_in_roster", ("name",)
    ),
    "policy refuses": Planted(
        in_policy("allow", tensors=["none.*"]), "policy_tensors", ("policy.toml", "train")
    ),
    "key open": Planted(
        lambda f: (f / "node.key").chmod(0o644), "key_open", ("node.key", "chmod 600")
    ),
    "no node key": Planted(without("node.key"), "node_key", ("node.key", "enrol")),
    "no certificate": Planted(without("site.pem"), "identity_missing", ("site.pem", "--token")),
    "damaged key": Planted(
        lambda f: (f / "site.key").write_text("x"), "identity_damaged", ("site.key",)
    ),
    "coordinator": Planted(
        in_policy("allow", coordinators=["5" * 64]),
        "coordinator_not_allowed",
        ("coordinator.pub", "allow.coordinators"),
    ),
    "no coordinator": Planted(
        without("coordinator.pub"), "coordinator_missing", ("coordinator.pub", "kit")
    ),
    "state is a file": Planted(
        lambda f: (f / "worker-state").write_text(""), "folder_unusable", ("worker.state",)
    ),
    "state open": Planted(
        lambda f: (f / "worker-state").mkdir(mode=0o755), "folder_open", ("worker.state", "chmod")
    ),
    "socket path": Planted(
        in_site("worker", socket="s" * 88), "worker_socket", ("107", "worker.socket")
    ),
    "no GPU": Planted(in_site("compute", device="cuda:7"), "no_such_device", ("compute.device",)),
    "threads": Planted(
        in_site("compute", threads=(os.cpu_count() or 1) + 1),
        "more_threads_than_cores",
        ("compute.threads",),
    ),
    "backbone": Planted(
        lambda f: edit(f / "federation.toml", lambda c: c.update(backbone={"ref": "timm:nothing"})),
        "",
        (),
    ),
    "deadline": Planted(
        in_federation("rounds", deadline_s=0.001), "round_too_long", ("rounds.deadline_s",)
    ),
    "no data": Planted(without("data/table.csv"), "", ("table.csv",)),
    "missing column": Planted(in_table("x1,", "y1,", 1), "missing_column", ("x1", "rename")),
    "unknown label": Planted(in_table(",yes\n", ",maybe\n"), "unknown_label", ("label",)),
    "text in a number": Planted(in_table("a1,a,", "a1,a,?x", 1), "not_a_number", ("x1",)),
    "unknown category": Planted(in_table(",blue,", ",green,"), "unknown_category", ("colour",)),
    "in both parts": Planted(shared_subject, "subject_in_two_parts", ("id",)),
    "copies": Planted(copies, "duplicate_rows", ("table.csv",)),
    "too few": Planted(
        in_policy("limits", min_subjects=1000), "policy_subjects", ("limits.min_subjects",)
    ),
    "other unit": Planted(
        in_federation("data", reference={"x1": [100.0, 200.0]}),
        "outside_reference",
        ("x1", "unit"),
    ),
    "one class": Planted(in_table(",no\n", ",yes\n"), "one_class", ("class",)),
}


@contextmanager
def here(folder: Path) -> Iterator[str]:
    yield str(folder)


def has(found: Checkup, planted: Planted) -> bool:
    return any(
        (not planted.code or each.code == planted.code)
        and each.severity != "note"
        and all(word in each.message for word in planted.names)
        for each in found.findings
    )


def test_a_healthy_site_has_no_fault_and_is_what_it_was(folder: Path) -> None:
    before = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found = check_site(folder / "site.toml")
    assert found.num_faults == 0, found.to_text()
    assert {each.severity for each in found.findings} <= {"note"}
    assert found.measured["tiny.train_s"] > 0
    assert found.measured["tiny.answer_bytes"] > 1000
    assert found.seconds < 60
    assert {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_twin_a_rehearsal_in_the_sites_own_state_would_leave_traces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_module.tempfile, "TemporaryDirectory", lambda **_: here(folder))
    check_site(folder / "site.toml")
    assert (folder / "state" / "audit").exists()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_named_with_what_to_do(folder: Path, name: str) -> None:
    planted = PLANTED[name]
    planted.plant(folder)
    found = check_site(folder / "site.toml", limit_s=20.0)
    assert has(found, planted), found.to_text()
    only_warned = name == "threads"
    assert bool(found.num_faults) != only_warned, found.to_text()


def test_there_are_at_least_twenty_five() -> None:
    assert len(PLANTED) >= 25


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"elsewhere": True}, "certificate_authority"),
        ({"other_key": True}, "certificate_key"),
        ({"name": "b"}, "certificate_site"),
        ({"now": datetime.now(UTC) - timedelta(days=900)}, "certificate_expired"),
        ({"now": datetime.now(UTC) - timedelta(days=710)}, "certificate_ends"),
        ({"now": datetime.now(UTC) + timedelta(days=3)}, "clock_behind"),
    ],
)
def test_a_certificate_that_does_not_fit_is_named(
    healthy: Path, folder: Path, options: dict[str, object], code: str
) -> None:
    certificate(healthy, **options)(folder)
    found = check_site(folder / "site.toml")
    (named,) = (each for each in found.findings if each.code == code)
    assert "site.pem" in named.message
    assert (named.severity == "fault") == (code != "certificate_ends")


def elsewhere(address: str) -> Callable[[dict[str, object]], object]:
    return lambda content: table(content, "node").update(aggregator=address)


def test_an_aggregator_that_does_not_answer_or_is_another_is_named(
    folder: Path, tmp_path: Path
) -> None:
    edit(folder / "site.toml", elsewhere(f"127.0.0.1:{free_port()}"))
    (named,) = (e for e in check_site(folder / "site.toml").findings if e.severity == "warning")
    assert named.code == "aggregator_unreachable"
    other, port = AggregatorFolder(tmp_path / "other"), free_port()
    make_aggregator(other, spec_of(name="other", host="localhost"))
    stop = serve_enrolment(other, port)
    edit(folder / "site.toml", elsewhere(f"127.0.0.1:{port}"))
    found = check_site(folder / "site.toml")
    stop()
    assert "aggregator_authority" in {e.code for e in found.findings if e.severity == "fault"}


def test_a_clock_that_differs_from_the_aggregators_is_named(folder: Path) -> None:
    found = check_site(folder / "site.toml", now=datetime.now(UTC) + timedelta(minutes=10))
    assert "clock_differs" in {e.code for e in found.findings if e.severity == "warning"}
    assert found.num_faults == 0


def test_a_damaged_log_and_one_of_the_future_are_faults(folder: Path) -> None:
    log = folder / "worker-state" / "audit"
    AuditLog(log).append("step_refused", code="x")
    (folder / "worker-state").chmod(0o700)
    past = check_site(folder / "site.toml", now=datetime.now(UTC) - timedelta(days=2))
    assert "clock_behind" in {each.code for each in past.findings}
    lines = (log / "log.jsonl").read_bytes().splitlines(keepends=True)
    (log / "log.jsonl").write_bytes(lines[1])
    assert "audit_damaged" in {each.code for each in check_site(folder / "site.toml").findings}


def test_a_full_disk_and_too_little_memory_are_faults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
        assert "disk_space" in {each.code for each in check_site(folder / "site.toml").findings}
    monkeypatch.setattr(check_module, "available_mib", lambda: 10.0)
    assert "memory" in {each.code for each in check_site(folder / "site.toml").findings}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"turned": True}, "image_orientation"),
        ({"constant": True}, "constant_image"),
        ({"deep": True}, "unreadable_image"),
    ],
)
def test_images_that_would_mislead_are_faults(
    folder: Path, options: dict[str, bool], code: str
) -> None:
    images(folder, **options)
    found = check_site(folder / "site.toml", limit_s=1.0)
    assert code in {each.code for each in found.findings if each.severity == "fault"}, (
        found.to_text()
    )


def test_the_command_says_it_in_words_and_in_json_and_by_its_status(folder: Path) -> None:
    done = CliRunner().invoke(
        site_verbs,
        ["check", str(folder / "site.toml"), str(folder / "federation.toml")],
        standalone_mode=False,
    )
    assert done.return_value == 0, done.output
    assert "a: 0 faults" in done.output
    (folder / "policy.toml").unlink()
    done = CliRunner().invoke(
        site_verbs, ["check", str(folder / "site.toml"), "--json"], standalone_mode=False
    )
    assert done.return_value == 1
    told = json.loads(done.output)
    assert told["faults"] == sum(each["severity"] == "fault" for each in told["findings"]) > 0


def test_the_paper_lists_every_code_of_the_doctors_own() -> None:
    root = Path(__file__).parents[2]
    listed = set(
        re.findall(r"^\| `([a-z_]+)`", (root / "docs" / "doctor.md").read_text(), re.MULTILINE)
    )
    own = re.compile(r'found\.(fault|warn|note)\(\s*"([a-z_]+)"')
    source = [p.read_text() for p in (root / "client/wardround_client/doctor").glob("*.py")]
    told = {code for text in source for _, code in own.findall(text)}
    shared = {"policy_subjects", "not_in_roster", "no_federations"}
    assert listed == told - shared | {"gpu_memory", "rehearsal_unfinished"}
