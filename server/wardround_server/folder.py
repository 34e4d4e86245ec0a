"""The folder of one run: journal, model, report."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from wardround_common.canonical import canonical_bytes
from wardround_common.durable import write_file
from wardround_common.errors import ConfigError
from wardround_common.types import Digest
from wardround_common.wire.layout import unpack
from wardround_server.report.html import render_html
from wardround_server.report.model import Report, report_bytes
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.outcome import RunOutcome

MODEL, EXACT_HEAD, REPORT_JSON, REPORT_HTML = (
    "model.safetensors",
    "exact_head.safetensors",
    "report.json",
    "report.html",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run lives."""

    path: Path

    def open_journal(
        self,
        *,
        resume: bool,
        settle_every_s: float = 0.0,
        before_flush: Callable[[], None] = lambda: None,
    ) -> Journal:
        """The run's journal.

        Args:
            resume: go on with the run that is there; without one, a new run begins.
            settle_every_s: see :class:`Journal`.
            before_flush: likewise.

        Raises:
            ConfigError: there is a run already and ``resume`` is off, or the folder cannot be made.
            IntegrityError: the journal is damaged.
        """
        journal = self.path / "journal"
        if journal.exists() and not resume:
            raise ConfigError(
                f"{self.path} already holds a run; go on with it by --resume, or name another "
                "folder by --out",
                code="run_exists",
            )
        try:
            journal.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be made ({error.strerror}); name another folder by --out",
                code="out_folder",
            ) from error
        return Journal(journal, settle_every_s, before_flush=before_flush)

    @property
    def memory(self) -> Path:
        """What simulated sites remember from round to round."""
        return self.path / "sites"

    def forget(self) -> None:
        """Delete what sites remember: the run has ended."""
        shutil.rmtree(self.memory, ignore_errors=True)

    def write_model(
        self,
        outcome: RunOutcome,
        spec_sha256: Digest,
        beside: Mapping[str, torch.Tensor] | None = None,
    ) -> Digest:
        """Write the trained set and the exact head as safetensors.

        Args:
            outcome: the finished run.
            spec_sha256: digest of the federation file.
            beside: tensors without which the trained set is of no use; written with it.

        The header of the model (key ``wardround``, canonical JSON) names the federation file and
        carries what is needed to use it: the round it is from and the standardisation of tables.

        Returns:
            The SHA-256 of ``model.safetensors``.
        """
        moments = None if outcome.moments is None else outcome.moments.model_dump(mode="json")
        described = {
            "format": "wardround-model/1",
            "spec_sha256": spec_sha256,
            "round": outcome.model_round,
            "moments": moments,
        }
        # One key only: safetensors writes several in an order that differs from run to run.
        metadata = {"wardround": canonical_bytes(described).decode("ascii")}
        if outcome.exact_head is not None:
            head = outcome.exact_head
            tensors = {
                "weight": torch.from_numpy(head.weight).float(),
                "bias": torch.from_numpy(head.bias).float(),
            }
            write_file(self.path / EXACT_HEAD, save(tensors, {"ridge": repr(head.ridge)}))
        trained = unpack(outcome.state.layout, outcome.state.values) | dict(beside or {})
        return write_file(self.path / MODEL, save(trained, metadata))

    def write_report(self, report: Report) -> None:
        """Write ``report.json`` and ``report.html``."""
        write_file(self.path / REPORT_JSON, report_bytes(report))
        write_file(self.path / REPORT_HTML, render_html(report).encode())
