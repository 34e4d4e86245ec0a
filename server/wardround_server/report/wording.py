"""The report's phrases: one place where numbers and codes become plain words."""

from collections.abc import Sequence
from typing import Final

from wardround_common.evaluation.scores import MetricValue, ModelScore, Verdict
from wardround_server.report.model import Report

NOTHING: Final = "\N{EN DASH}"
VERDICTS: Final[tuple[Verdict, ...]] = ("helped", "no difference", "harmed", "not measurable")
SIGNS: Final[dict[Verdict, str]] = {
    "helped": "▲",
    "no difference": "=",
    "harmed": "▼",
    "not measurable": "?",
}

_METRICS: Final = {
    "accuracy": ("accuracy", "the share of held-out {unit} that the model classified correctly"),
    "balanced_accuracy": (
        "balanced accuracy",
        "the share of each class that the model recognised, averaged over the classes",
    ),
    "auc": (
        "AUC",
        (
            "the chance that the model scores a randomly chosen positive case higher than a randomly "
            "chosen negative one; 0.5 is guessing"
        ),
    ),
    "f1_macro": (
        "macro F1",
        (
            "how well the model finds every case of a class without false ones, averaged over the "
            "classes"
        ),
    ),
    "entity_f1": (
        "entity F1",
        (
            "how well the model finds every entity without inventing any; an entity counts only with "
            "its exact words and type"
        ),
    ),
}

_NOTES: Final = {
    "few_test_subjects": "fewer than 10 held-out {unit}: no interval can be given",
    "one_class_test": "the held-out {unit} are all of one class: some figures do not exist",
    "one_class_training": "the training {unit} are all of one class: a local model cannot learn",
    "rows_as_subjects": "no patient column: each row was counted as one patient",
}

_PHASE_ORDER: Final = ("describe", "standardise", "exact head", "training", "validation")


def metric_name(name: str) -> str:
    """The metric in words, within a sentence."""
    return _METRICS.get(name, (name.replace("_", " "), ""))[0]


def capital(text: str) -> str:
    """``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def metric_meaning(name: str, unit: str) -> str:
    """What the metric says, as the end of a sentence; empty for an unknown metric."""
    return _METRICS.get(name, ("", ""))[1].format(unit=unit)


def note(code: str, unit: str) -> str:
    """A note's sentence; the code itself where it has none."""
    return _NOTES.get(code, code.replace("_", " ")).format(unit=unit)


def unit_of(report: Report) -> str:
    """What was counted and resampled: patients, or rows where there is no patient column."""
    return "rows" if report.setup.row_is_subject else "patients"


def share(value: float | None) -> str:
    """A metric to three digits."""
    return NOTHING if value is None else f"{value:.3f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign; without one where it rounds to zero."""
    rounded = round(value, digits)
    text = f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(metric: MetricValue | None) -> str:
    """The interval of a metric."""
    return "" if metric is None else f"{metric.low:.3f} to {metric.high:.3f}"


def signed_interval(metric: MetricValue | None) -> str:
    """The interval of a difference."""
    return "" if metric is None else f"{signed(metric.low)} to {signed(metric.high)}"


def metric_of(score: ModelScore | None, name: str) -> MetricValue | None:
    """One metric of a model, if there is the model and the metric."""
    return None if score is None else score.metrics.get(name)


def bytes_text(count: int) -> str:
    """A number of bytes in a unit that fits."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000.0, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:.3g} {units[0]}"


def seconds_text(seconds: float) -> str:
    """A time in units that fit."""
    if seconds < 10.0:
        return f"{seconds:.2g} s" if seconds < 1.0 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 120
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 round``, ``2 rounds``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as an enumeration: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def number_word(number: int) -> str:
    """A number up to twelve as a word, larger ones in digits."""
    names = [
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    return names[number] if number < len(names) else f"{number:,}"


def purpose(report: Report) -> str:
    """What the model does, after "a model that"."""
    labels = report.setup.labels
    few = listed(labels) if len(labels) <= 12 else f"{len(labels)} kinds"
    if report.setup.task == "entities":
        return f"finds {few} in text"
    return f"tells {few} apart"


def verdict_counts(report: Report) -> dict[Verdict, int]:
    """How many hospitals got each verdict."""
    given = [site.verdict for site in report.sites.values()]
    return {verdict: given.count(verdict) for verdict in VERDICTS}


def headline(report: Report) -> str:
    """The answer in one sentence."""
    total, counts = len(report.sites), verdict_counts(report)
    if total == 0:
        return "No hospital sent a comparison: whether training together helped is not known."
    if counts["not measurable"] == total:
        return "Whether training together helped could not be measured at any hospital."
    of_all = f"of {counted(total, 'hospital')}"
    parts = [f"helped {counts['helped'] or 'none'} {of_all}"]
    if counts["harmed"]:
        parts.append(f"harmed {counts['harmed']}")
    if counts["no difference"]:
        parts.append(f"made no difference that could be shown at {counts['no difference']}")
    text = f"Training together {listed(parts)}."
    if counts["not measurable"]:
        text += f" At {counts['not measurable']} it could not be measured."
    return text


def phase_names(report: Report) -> list[str]:
    """The run's phases in the order in which they happen."""
    names = {**report.bytes.phases, **report.seconds.phases}
    known = [name for name in _PHASE_ORDER if name in names]
    return known + [name for name in names if name not in _PHASE_ORDER]
