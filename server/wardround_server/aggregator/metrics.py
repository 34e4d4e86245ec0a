"""The aggregator's Prometheus endpoint: what ``status`` says, as numbers.

Everything is read from the aggregator's folder when it is asked for; nothing is counted twice.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wardround_common.errors import ConfigError, WardroundError
from wardround_server.aggregator.folder import AggregatorFolder
from wardround_server.aggregator.status import AggregatorState, RunState, read_state

_STATES = ("queued", "starting", "running", "done", "failed", "stopped")


class AggregatorMetrics(Collector):
    """An aggregator's numbers.

    Args:
        folder: the aggregator's.
    """

    def __init__(self, folder: AggregatorFolder) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """What is so now; nothing while the folder cannot be read."""
        try:
            state = read_state(self._folder)
        except (WardroundError, OSError, ValueError):
            return
        yield from _processes(state)
        yield from _sites(state)
        yield from _runs(state.runs)


def serve_metrics(folder: AggregatorFolder, address: str) -> None:
    """Serve them over HTTP, in a thread, until the process ends.

    Args:
        folder: the aggregator's.
        address: ``host:port``.

    Raises:
        ConfigError: nobody can listen there.
    """
    registry = CollectorRegistry()
    registry.register(AggregatorMetrics(folder))
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]"), registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics = {address!r}: cannot listen there ({error.strerror})",
            code="metrics_address",
        ) from None


def _processes(state: AggregatorState) -> Iterable[Metric]:
    runs = GaugeMetricFamily(
        "wardround_process_up", "Whether a process runs and answers.", labels=["process"]
    )
    restarts = CounterMetricFamily(
        "wardround_process_restarts", "Starts of a process after the first.", labels=["process"]
    )
    for name, is_up in state.processes.items():
        runs.add_metric([name], float(is_up))
    for name, count in state.restarts.items():
        restarts.add_metric([name], float(count))
    yield runs
    yield restarts


def _sites(state: AggregatorState) -> Iterable[Metric]:
    online = GaugeMetricFamily(
        "wardround_site_online", "Whether a site's node is there.", labels=["site"]
    )
    since = GaugeMetricFamily(
        "wardround_site_since_seconds",
        "Unix time since when a site is there, or is not.",
        labels=["site"],
    )
    for site in state.sites:
        online.add_metric([site.site], float(site.online))
        if site.since is not None:
            since.add_metric([site.site], site.since)
    yield online
    yield since


def _runs(runs: Iterable[RunState]) -> Iterable[Metric]:
    found = list(runs)
    states = GaugeMetricFamily("wardround_runs", "Runs by state.", labels=["state"])
    for state in _STATES:
        states.add_metric([state], float(sum(run.state == state for run in found)))
    yield states
    for name, text, value in (
        ("wardround_run_round", "Round under way.", lambda run: run.round),
        ("wardround_run_attempts", "Attempts of a run.", lambda run: run.attempt),
        ("wardround_run_missing", "Sites waited for.", lambda run: len(run.waited_for)),
        (
            "wardround_run_refused",
            "Sites refused in this step.",
            lambda run: len(run.refused or {}),
        ),
        ("wardround_run_down_bytes", "Sent to sites.", lambda run: run.bytes_down),
        ("wardround_run_up_bytes", "Received from sites.", lambda run: run.bytes_up),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["run"])
        for run in found:
            if run.state in {"running", "starting"}:
                gauge.add_metric([run.run], float(value(run)))
        yield gauge
    times = GaugeMetricFamily(
        "wardround_run_seconds", "Wall time by kind of step.", labels=["run", "phase"]
    )
    for run in found:
        if run.state in {"running", "starting"}:
            for phase, seconds in (run.seconds or {}).items():
                times.add_metric([run.run, phase], seconds)
    yield times
