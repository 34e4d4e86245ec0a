"""The hospital's control point in a real consortium: policy, approval, audit log, and no canary out."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.consortium import WARDROUND, Consortium, Site
from tests.policies import write_policy
from wardround_common.audit.entries import Entry, parse_entry
from wardround_common.audit.heads import parse_head, sign_head
from wardround_common.audit.tree import Tree
from wardround_common.audit.verify import HEAD, LOG, verified
from wardround_common.crypto.signing import signing_key
from wardround_server.aggregator.records import RunRecord

pytestmark = pytest.mark.slow

CANARY = "CANARY"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with Consortium(tmp_path_factory.mktemp("control"), rounds={"count": 2}) as made:
        yield made


@pytest.fixture(scope="module")
def finished(consortium: Consortium) -> RunRecord:
    record = consortium.begin()
    assert consortium.finish(record) == "done", consortium.logs()
    return record


def audit_of(site: Site) -> Path:
    return site.folder / "worker-state" / "audit"


def wardround(*words: object, status: int = 0) -> str:
    done = subprocess.run(
        [*WARDROUND, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def under(site: Site, **changes: Any) -> Iterator[None]:
    """A site under another policy for a while; its consortium is shared, in any order of tests."""
    _restarted(site, **changes)
    yield
    _restarted(site)


def _restarted(site: Site, **changes: Any) -> None:
    write_policy(site.folder, **site.own, **changes)
    assert site.worker is not None
    site.worker.end()
    site.worker.start()


def head_of(consortium: Consortium, record: RunRecord, site: str) -> Path:
    """The head of a site's log that its aggregator has kept."""
    out = consortium.path / f"{site}.head.json"
    consortium.call("head", str(consortium.folder.path), record.run, site, "--out", str(out))
    return out


def test_the_log_says_of_every_answer_that_it_left_and_of_no_other(
    consortium: Consortium, finished: RunRecord
) -> None:
    for site in consortium.sites.values():
        left = [release.receipt for release in site.releases(finished.run)]
        found = verified(audit_of(site))
        assert found.bad is None
        noted = [
            entry.fields["receipt_sha256"]
            for entry in found.entries
            if entry.event == "update_released" and entry.fields["run"] == finished.run
        ]
        assert left
        assert noted == left


def rewritten(folder: Path, out: Path) -> None:
    """The same log without its third entry, by somebody who has the key: all of it fits itself."""
    shutil.copytree(folder, out)
    tree, lines = Tree(), []
    for line in (folder / LOG).read_bytes().splitlines():
        entry = parse_entry(line)
        if entry.index == 2:
            continue
        new = Entry(tree.size, entry.at, entry.event, entry.fields, tree.root.hex()).to_line()
        lines.append(new + b"\n")
        tree.add(new)
    (out / LOG).write_bytes(b"".join(lines))
    head = sign_head(signing_key(out / "key"), tree.size, tree.root)
    (out / HEAD).write_bytes(head.to_bytes())


def test_a_history_that_a_site_writes_anew_does_not_fit_the_aggregators_head(
    consortium: Consortium, finished: RunRecord, tmp_path: Path
) -> None:
    folder = audit_of(consortium.sites["a"])
    head = head_of(consortium, finished, "a")
    assert json.loads(wardround("audit", "verify", folder, "--head", head, "--json"))["bad"] is None
    rewritten(folder, tmp_path / "rewritten")
    by_itself = wardround("audit", "verify", tmp_path / "rewritten", "--json")
    assert json.loads(by_itself)["bad"] is None, "the failing twin: nobody else's head"
    told = wardround("audit", "verify", tmp_path / "rewritten", "--head", head, "--json", status=1)
    assert json.loads(told)["bad"]["code"] in {"history_rewritten", "entries_missing"}
    other = parse_head(head_of(consortium, finished, "b").read_bytes())
    assert verified(folder, [other]).bad is not None, "nor does another site's"


def test_a_history_that_the_aggregator_writes_anew_does_not_fit_what_the_sites_have_seen(
    consortium: Consortium, finished: RunRecord, tmp_path: Path
) -> None:
    site, head = consortium.sites["b"], tmp_path / "seen.json"
    wardround("site", "head", site.file, finished.run, "--out", head)
    told = wardround("audit", "verify", finished.audit, "--head", head, "--json")
    assert json.loads(told)["bad"] is None
    shutil.copy(consortium.folder.coordinator_key, finished.audit / "key")
    rewritten(finished.audit, tmp_path / "rewritten")
    (finished.audit / "key").unlink()
    by_itself = wardround("audit", "verify", tmp_path / "rewritten", "--json")
    assert json.loads(by_itself)["bad"] is None, "the failing twin: nobody else's head"
    told = wardround("audit", "verify", tmp_path / "rewritten", "--head", head, "--json", status=1)
    assert json.loads(told)["bad"]["code"] in {"history_rewritten", "entries_missing"}


def test_both_logs_say_the_same_of_every_answer(
    consortium: Consortium, finished: RunRecord
) -> None:
    run = verified(finished.audit)
    assert run.bad is None
    admitted = [each.fields for each in run.entries if each.event == "answer_admitted"]
    for name, site in consortium.sites.items():
        here = [
            entry.fields["receipt_sha256"]
            for entry in verified(audit_of(site)).entries
            if entry.event == "update_released" and entry.fields["run"] == finished.run
        ]
        assert [each["receipt_sha256"] for each in admitted if each["site"] == name] == here
    membership = [entry.event for entry in verified(consortium.folder.audit).entries]
    assert membership.count("site_enrolled") == len(consortium.sites)
    assert "run_ended" in membership


def test_a_run_waits_for_a_hospitals_approval_and_goes_on(consortium: Consortium) -> None:
    site = consortium.sites["a"]
    with under(site, demands__approval="run"):
        record = consortium.begin()
        assert consortium.finish(record) == "failed", consortium.logs()
        assert "policy_approval" in consortium.logs()
        (asked,) = json.loads(wardround("site", "approve", site.file, "--json"))
        assert asked["run"] == record.run
        wardround("site", "approve", site.file, record.run)
        consortium.call("resume", str(consortium.folder.path), record.run, "--detach")
        assert consortium.finish(record) == "done", consortium.logs()
    assert record.outcome is not None
    assert record.outcome.model_sha256 == consortium.simulated_sha256()


def plant(site: Site, folder: Path, *, broken: bool) -> None:
    """Give a site data that is full of canaries: folder, file, identifiers, a column, a bad cell."""
    own = folder / f"{CANARY}-FOLDER"
    own.mkdir(exist_ok=True)
    head, *rows = (site.file.parents[2] / "data" / "table.csv").read_text().splitlines()
    lines = [f"{head},{CANARY.lower()}_column"]
    for row in rows:
        identifier, rest = row.split(",", 1)
        lines.append(f"{CANARY}-ID-{identifier},{rest},{CANARY}-NOTE")
    if broken:
        cells = next(line for line in lines if f",{site.name}," in line).split(",")
        lines.append(",".join([f"{CANARY}-ID-BAD", cells[1], f"{CANARY}-CELL", *cells[3:]]))
    table = own / f"{CANARY}-FILE.csv"
    table.write_text("\n".join(lines) + "\n")
    text = site.file.read_text()
    before = next(line for line in text.splitlines() if line.startswith("path = "))
    site.file.write_text(text.replace(before, f'path = "{table}"'))
    _restarted(site)


def carries(folder: Path, outside: tuple[Path, ...]) -> list[str]:
    """Files with a canary in their name or bytes, but for those of whoever may have it."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or any(path.is_relative_to(each) for each in outside):
            continue
        inside = CANARY.lower().encode() in path.read_bytes().lower()
        if inside or CANARY.lower() in path.name.lower():
            found.append(str(path.relative_to(folder)))
    return found


def test_nothing_that_is_planted_at_a_site_is_found_outside_its_worker(tmp_path: Path) -> None:
    tables: dict[str, Any] = {"rounds": {"count": 1, "deadline_s": 20.0}}
    with Consortium(tmp_path / "all", **tables) as consortium:
        site = consortium.sites["a"]
        plant(site, tmp_path, broken=False)
        record = consortium.begin()
        assert consortium.finish(record) == "done", consortium.logs()
        plant(site, tmp_path, broken=True)
        record = consortium.begin()
        assert consortium.finish(record) == "failed", consortium.logs()
        assert (site.folder / "releases.wire").stat().st_size > 1000, "what crossed the airlock"
        told = (site.folder / "worker-state" / "failures.txt").read_text()
        assert f"{CANARY}-CELL" in told, "its own operator is told"
    own = (site.file, site.folder / "worker-state", site.folder / "cache")
    assert carries(tmp_path / "all", own) == []
    assert carries(audit_of(site), ()) == []
    assert carries(tmp_path / "all", ()), "the failing twin: the search finds what is there"
