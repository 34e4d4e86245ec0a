"""A dry round: every kind of question of a federation, through a real airlock, with nobody else there.

1. Worker, control, guard and airlock are the real ones; only the hours, the approval and the daily limit of
   the policy are left aside, and who asks is the doctor.
2. State, socket and caches are in a folder of its own that is gone afterwards: the site's own state,
   log and approvals are not touched, and no answer leaves this process.
"""

import resource
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.airlock.client import AirlockClient
from wardround_client.airlock.server import AirlockServer
from wardround_client.airlock.service import AirlockService
from wardround_client.doctor.examined import Examined
from wardround_client.doctor.findings import Checkup
from wardround_client.policy.control import SiteControl
from wardround_client.policy.papers import questions
from wardround_client.worker.comparison import ModelComparison
from wardround_client.worker.desk import SiteDesk
from wardround_common.audit.heads import sign_head
from wardround_common.audit.tree import EMPTY_ROOT
from wardround_common.crypto.signing import SigningKey
from wardround_common.errors import WardroundError
from wardround_common.moments import moments_of
from wardround_common.rpc.frames import pieces
from wardround_common.shared_model import SharedModel
from wardround_common.spec.policy import PolicySpec
from wardround_common.spec.site import SiteSpec
from wardround_common.types import SiteId, sha256_hex
from wardround_common.wire.layout import Layout, as_bytes, pack
from wardround_common.wire.step import StepManifest, TableMoments, layout_to_wire

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Said:
    """An answer: a failure's code, or the bytes of its array."""

    failure: str
    array: bytes
    num_bytes: int
    seconds: float


def rehearse(
    examined: Examined, model: SharedModel, num_examples: int, limit_s: float, found: Checkup
) -> None:
    """Ask everything once.

    Args:
        examined: the site, with a policy.
        model: of the federation.
        num_examples: training examples.
        limit_s: seconds after which no further question is asked, and the one under way is given up.
        found: takes in faults, and what was measured.
    """
    name = model.federation.federation.name
    key = SigningKey(Ed25519PrivateKey.generate())
    until = time.monotonic() + limit_s
    assert examined.policy is not None
    with _airlock(examined.site, examined.base, examined.policy, key) as (client, failures):
        moments: TableMoments | None = None
        for step, asked in enumerate(questions(model.federation, model)):
            question = _question(asked, model, key, step, moments)
            said = _ask(client, question, model, until - time.monotonic())
            if said.failure:
                last = failures[-1] if failures else None
                _tell(found, f"{name}: the rehearsal of {asked.kind!r}", said.failure, last)
                return
            if asked.kind == "moments":
                moments = moments_of(np.frombuffer(said.array, dtype="<f8").reshape(3, -1))
            _measure(found, name, asked.kind, said, num_examples)
    _check_time(found, model, name)


@contextmanager
def _airlock(
    site: SiteSpec, base: Path, policy: PolicySpec, key: SigningKey
) -> Iterator[tuple[AirlockClient, list[Exception]]]:
    """A worker of this site in a folder of its own, and a way to ask it."""
    failures: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="wr-check-") as name:
        folder = Path(name)
        allow = policy.allow.model_copy(update={"coordinators": (key.public,)})
        limits = policy.limits.model_copy(
            update={"hours": None, "rounds_per_day": 1000, "runs_per_day": 1000}
        )
        demands = policy.demands.model_copy(update={"approval": "none"})
        own = policy.model_copy(
            update={"allow": allow, "limits": limits, "demands": demands, "dry_run": False}
        )
        compute = site.compute.model_copy(update={"cache": str(folder / "cache")})
        rehearsed = site.model_copy(update={"compute": compute})
        control = SiteControl(SiteId(site.name), own, folder / "state")
        desk = SiteDesk(_in(rehearsed, folder), base, control)
        socket = folder / "airlock" / "s"
        server = AirlockServer(AirlockService(desk, failures.append), socket)
        client = AirlockClient(socket)
        try:
            yield client, failures
        finally:
            client.close()
            server.close(0.0)
            desk.close()


def _in(site: SiteSpec, folder: Path) -> SiteSpec:
    worker = site.worker.model_copy(update={"state": str(folder / "state")})
    return site.model_copy(update={"worker": worker})


def _question(
    asked: StepManifest,
    model: SharedModel,
    key: SigningKey,
    step: int,
    moments: TableMoments | None,
) -> StepManifest:
    """A kind of question, about the first round, as the doctor asks it."""
    first = min(asked.round, 1)
    layout = _state_layout(asked, model, first)
    reply = model.layout(first) if asked.kind == "train" else None
    changed = {
        "run": secrets.token_hex(8),
        "step": step,
        "round": first,
        "state": layout_to_wire(layout),
        "state_sha256": sha256_hex(_state(layout, model)),
        "bound": 1e30 if asked.kind in {"moments", "gram"} else asked.update_norm,
        "moments": moments,
        "head": sign_head(key, 0, EMPTY_ROOT),
    }
    if reply is not None:
        changed["reply"] = layout_to_wire(reply)
    return asked.model_copy(update=changed).signed(key)


def _state_layout(asked: StepManifest, model: SharedModel, round_: int) -> Layout:
    if asked.kind in {"train", "evaluate"}:
        return model.state_layout(round_)
    if asked.kind == "compare":
        return ModelComparison.state_layout(model)
    return Layout(())


def _state(layout: Layout, model: SharedModel) -> bytes:
    """The start of training; zeros for what comes of earlier steps."""
    if not layout.num_values:
        return b""
    tensors = {
        spec.name: model.initial.get(spec.name, torch.zeros(spec.shape)) for spec in layout.tensors
    }
    values = pack(layout, tensors).astype(np.float32, copy=False)
    return bytes(as_bytes(values))


def _ask(
    client: AirlockClient, manifest: StepManifest, model: SharedModel, within_s: float
) -> _Said:
    state = _state(manifest.state_layout, model)
    started = time.monotonic()
    if within_s <= 0:
        return _Said("rehearsal_unfinished", b"", 0, 0.0)
    try:
        answer = client.execute(
            manifest.to_bytes(), pieces(memoryview(state)), len(state), deadline_s=within_s
        )
        array = b"".join(answer.chunks)
    except WardroundError as error:
        late = time.monotonic() - started >= within_s - 1.0
        client.stop(manifest.run)
        return _Said("rehearsal_unfinished" if late else error.code, b"", 0, 0.0)
    spent = time.monotonic() - started
    return _Said(answer.failure, array, len(answer.document) + len(array), spent)


def _tell(found: Checkup, what: str, code: str, last: Exception | None) -> None:
    if code == "rehearsal_unfinished":
        found.warn(
            code,
            f"{what} came to no end in time; give it longer by --limit, or expect rounds that take at "
            "least so long",
        )
        return
    if isinstance(last, torch.cuda.OutOfMemoryError):
        code, why = (
            "gpu_memory",
            "the GPU has too little memory; write a smaller compute.micro_batch",
        )
    else:
        why = str(last) if isinstance(last, WardroundError) else "see the code in docs/doctor.md"
    found.fault(code, f"{what} failed: {why}")


def _measure(found: Checkup, name: str, kind: str, said: _Said, num_examples: int) -> None:
    total = f"{name}.answer_bytes"
    found.measured[total] = found.measured.get(total, 0.0) + said.num_bytes
    if kind == "train":
        found.measured[f"{name}.train_s"] = round(said.seconds, 3)
        found.measured[f"{name}.examples_per_s"] = round(num_examples / max(said.seconds, 1e-3), 1)
        found.measured[f"{name}.peak_mib"] = round(_peak_mib(), 1)


def _peak_mib() -> float:
    """Most memory so far: of the GPU if one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / _MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _check_time(found: Checkup, model: SharedModel, name: str) -> None:
    deadline, spent = model.federation.rounds.deadline_s, found.measured.get(f"{name}.train_s", 0.0)
    if spent > deadline:
        found.fault(
            "round_too_long",
            f"{name}: one round trains for {spent:.0f} s here, and rounds.deadline_s is {deadline:.0f}: this "
            "site would never contribute; lend more, or ask the coordinator for a later deadline",
        )
    elif spent > deadline / 2:
        found.warn(
            "round_long",
            f"{name}: one round trains for {spent:.0f} s here, more than half of rounds.deadline_s, "
            f"{deadline:.0f}",
        )
