"""UCI heart disease as Fed-Heart-Disease of FLamby has it.

The filter, the split and the features follow FLamby (Ogier du Terrail et al., NeurIPS 2022
Datasets and Benchmarks, ``fed_heart_disease/dataset.py``), so that figures can be compared:

1. ``slope``, ``ca`` and ``thal`` play no part in the filter; rows with another empty cell are
   left out: 740 of 920 remain.
2. Each hospital is split 66/34 with seed 43, stratified by disease where each class has more than
   two rows.
3. ``cp`` and ``restecg`` are also given one-hot without their first value.

FLamby codes ``restecg`` after a reader that takes the column as text where the file has empty
cells (hungarian, switzerland) and as numbers elsewhere; text "0" and number 0 then become two
values, and its 16 features include five columns for restecg instead of two. Both forms are given:
``restecg_1``, ``restecg_2`` (13 clean features) and the five ``flamby_restecg_*`` (FLamby's 16).
"""

from collections.abc import Sequence

import numpy as np

from wardround_client.data.prepare.files import Prepared, Sources, csv_bytes

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
UCI_COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
)
_UNFILTERED = frozenset({"slope", "ca", "thal"})
_CP, _RESTECG = UCI_COLUMNS.index("cp"), UCI_COLUMNS.index("restecg")
_DUMMIES = ("cp_2", "cp_3", "cp_4", "restecg_1", "restecg_2")
_FLAMBY = tuple(
    f"flamby_restecg_{name}" for name in ("number_1", "number_2", "text_0", "text_1", "text_2")
)
COLUMNS = ("id", "hospital", "part", *UCI_COLUMNS, *_DUMMIES, *_FLAMBY)
_TRAIN_FRACTION = 0.66
_SEED = 43


def prepare(sources: Sources) -> Prepared:
    """One table of the rows that pass the filter, hospital after hospital."""
    rows: list[list[str]] = []
    for hospital in HOSPITALS:
        rows += _hospital(hospital, sources[f"processed.{hospital}.data"].decode("ascii"))
    return {"data.csv": csv_bytes(COLUMNS, rows)}


def _hospital(hospital: str, text: str) -> list[list[str]]:
    """The table's rows of one hospital."""
    table = [[_plain(cell) for cell in line.split(",")] for line in text.splitlines() if line]
    as_text = any(row[_RESTECG] == "" for row in table)
    places = [place for place, name in enumerate(UCI_COLUMNS) if name not in _UNFILTERED]
    kept = [(line, row) for line, row in enumerate(table, 1) if all(row[i] for i in places)]
    parts = _parts([int(row[-1] != "0") for _, row in kept])
    return [
        [f"{hospital}-{line}", hospital, part, *row, *_dummies(row, as_text=as_text)]
        for (line, row), part in zip(kept, parts, strict=True)
    ]


def _plain(cell: str) -> str:
    """A cell's number in its shortest form; empty for "?"."""
    if cell.strip() == "?":
        return ""
    value = float(cell)
    return str(int(value)) if value.is_integer() else repr(value)


def _dummies(row: Sequence[str], *, as_text: bool) -> list[str]:
    """The one-hot columns of one row."""
    chest_pain, ecg = row[_CP], row[_RESTECG]
    clean = [chest_pain == "2", chest_pain == "3", chest_pain == "4", ecg == "1", ecg == "2"]
    numbers = [not as_text and ecg == value for value in ("1", "2")]
    texts = [as_text and ecg == value for value in ("0", "1", "2")]
    return [str(int(one)) for one in (*clean, *numbers, *texts)]


def _parts(labels: Sequence[int]) -> list[str]:
    """``train`` or ``test`` of each row of one hospital."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    stratify = np.asarray(labels) if len(classes) > 1 and counts.min() > 2 else None
    _, test = train_test_split(
        np.arange(len(labels)),
        test_size=1.0 - _TRAIN_FRACTION,
        train_size=_TRAIN_FRACTION,
        random_state=_SEED,
        shuffle=True,
        stratify=stratify,
    )
    in_test = {int(place) for place in test}
    return ["test" if place in in_test else "train" for place in range(len(labels))]
