"""What a person or a program sees while a run goes on."""

import json
import time
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from wardround_common.spec.federation import FederationSpec
from wardround_common.wire.bodies import EvaluateBody, TrainBody
from wardround_common.wire.step import StepManifest
from wardround_server.rounds.results import StepResult

_TITLES = {
    "describe": "asking the sites",
    "moments": "summing moments",
    "gram": "exact head",
    "train": "round",
    "evaluate": "validating",
    "compare": "comparing at each site",
}


class QuietObserver:
    """Says nothing."""

    def step_started(self, manifest: StepManifest) -> None:
        """Nothing."""

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """Nothing."""

    def step_ended(self, result: StepResult) -> None:
        """Nothing."""


class JsonObserver:
    """One JSON line an event.

    Args:
        stream: where to write, such as standard output.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def step_started(self, manifest: StepManifest) -> None:
        """A line for the step."""
        self._write(
            "step_started",
            kind=manifest.kind,
            step=manifest.step,
            round=manifest.round,
            sites=len(manifest.sites),
        )

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """A line for the contribution."""
        self._write("answer_arrived", kind=kind, site=site, refusal=refusal)

    def step_ended(self, result: StepResult) -> None:
        """A line for the result."""
        self._write(
            "step_ended",
            kind=result.manifest.kind,
            step=result.manifest.step,
            round=result.manifest.round,
            sites=sorted(result.contributions),
            missing=result.missing,
            refused=[list(pair) for pair in sorted(result.refused)],
            abandoned=result.abandoned,
            loss=mean_loss(result),
            metric=mean_metric(result),
            bytes_up=result.bytes_up,
            bytes_down=result.bytes_down,
            seconds=round(result.seconds, 3),
        )

    def _write(self, event: str, **fields: object) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()


class RichObserver:
    """A live line with round, sites, loss, metric and time left; used as a context manager.

    Args:
        console: where to draw.
        spec: the federation, for the number of rounds.
    """

    def __init__(self, console: Console, spec: FederationSpec) -> None:
        self._console = console
        self._total = spec.rounds.count
        self._sites = len(spec.federation.sites)
        self._metric_name = spec.metric
        self._loss: float | None = None
        self._metric: float | None = None
        self._answered = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "starting", total=max(self._total, 1) * self._sites + 3 * self._sites, detail=""
        )
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step_started(self, manifest: StepManifest) -> None:
        """Show what is asked."""
        self._answered = 0
        title = _TITLES[manifest.kind]
        if manifest.kind in {"train", "evaluate"}:
            title = f"{title} {manifest.round} of {self._total}"
        self._progress.update(self._task, description=title)
        self._show()

    def answer_arrived(self, kind: str, site: str, refusal: str | None) -> None:
        """Count the site; say refusals aloud."""
        self._answered += 1
        if kind != "evaluate":
            self._progress.advance(self._task)
        if refusal is not None:
            self._console.print(f"[yellow]{site}: refused ({refusal})[/yellow]")
        self._show()

    def step_ended(self, result: StepResult) -> None:
        """Show loss and metric; say abandoned steps aloud."""
        self._loss = mean_loss(result) if result.manifest.kind == "train" else self._loss
        metric = mean_metric(result)
        self._metric = self._metric if metric is None else metric
        if result.abandoned:
            absent = ", ".join([*result.missing, *(site for site, _ in result.refused)])
            self._console.print(
                f"[yellow]{result.manifest.kind} step of round {result.manifest.round} abandoned; "
                f"without {absent}[/yellow]"
            )
        self._show()

    def _show(self) -> None:
        parts = [f"{self._answered}/{self._sites} sites"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if self._metric is not None:
            parts.append(f"{self._metric_name} {self._metric:.4f}")
        self._progress.update(self._task, detail="  ".join(parts))


def mean_loss(result: StepResult) -> float | None:
    """Mean training loss of a step weighted by examples; None for other kinds."""
    parts = [p for p in result.contributions.values() if isinstance(p.body, TrainBody)]
    weight = sum(part.num_examples for part in parts)
    if not weight:
        return None
    return (
        sum(p.body.loss * p.num_examples for p in parts if isinstance(p.body, TrainBody)) / weight
    )


def mean_metric(result: StepResult) -> float | None:
    """Federated validation metric of a step, weighted by subjects; None for other kinds."""
    bodies = [p.body for p in result.contributions.values() if isinstance(p.body, EvaluateBody)]
    pairs = [(b.metric, b.num_validation_subjects) for b in bodies if b.metric is not None]
    weight = sum(subjects for _, subjects in pairs)
    return sum(metric * subjects for metric, subjects in pairs) / weight if weight else None
