"""The schema that every site's data must have: the ``[data]`` table of a federation file."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wardround_common.spec.base import ColumnName, Count, OpenRate, RateBelowOne, Table


class SubjectSplit(Table):
    """Held-out subjects drawn at random at the site: no patient is in both parts."""

    kind: Literal["random"] = Field(default="random", description="How subjects are held out.")
    test_fraction: OpenRate = Field(
        default=0.3, description="Share of subjects held out for the report."
    )
    stratify: bool = Field(
        default=True,
        description="Keep the share of each class (by a subject's first label) in both parts.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the split; the same at every site.")


class ColumnSplit(Table):
    """Held-out rows named by a column of the data, as published splits are."""

    kind: Literal["column"] = Field(description="How subjects are held out.")
    column: ColumnName = Field(description="Column that names the part of each row.")
    train: tuple[str, ...] = Field(
        default=("train",), min_length=1, description="Values meaning training."
    )
    test: tuple[str, ...] = Field(
        default=("test",), min_length=1, description="Values meaning held out."
    )

    @model_validator(mode="after")
    def _apart(self) -> "ColumnSplit":
        both = sorted(set(self.train) & set(self.test))
        if both:
            raise ValueError(f"values in both train and test: {', '.join(both)}")
        return self


Split = Annotated[SubjectSplit | ColumnSplit, Field(discriminator="kind")]


MeanRange = Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]


class DataTable(Table):
    """What all modalities share."""

    subject: ColumnName | None = Field(
        default=None,
        description="Column with the patient's identifier. All rows of a patient stay in one part "
        "of the split. Without it each row counts as one subject, and the report says so.",
    )
    split: Split = Field(
        default_factory=SubjectSplit,
        description="How subjects are held out for the report. Absent: 30 % at random.",
    )
    reference: dict[str, MeanRange] = Field(
        default_factory=dict,
        description="What `wardround site check` holds a site's data against: numeric column (or "
        '"intensity", the mean grey value of images from 0 to 1, or "words", the mean number of '
        "words of a text) -> lowest and highest mean that a site should have.",
    )
    validation_fraction: RateBelowOne = Field(
        default=0.0,
        description="Share of the training subjects kept for federated validation (curves, early "
        "stopping). 0 trains on all of them and validates on none.",
    )

    @field_validator("reference")
    @classmethod
    def _ranges(cls, value: dict[str, MeanRange]) -> dict[str, MeanRange]:
        for name, (low, high) in value.items():
            if not low < high:
                raise ValueError(f"{name!r}: the lowest mean comes first, then the highest")
        return value


class LabelledTable(DataTable):
    """Data with one label a row."""

    label: ColumnName = Field(description="Column with the label.")
    label_map: dict[str, str] = Field(
        default_factory=dict,
        description="Raw value -> class name of [task].labels. Empty: raw values are class names.",
    )


class TabularData(LabelledTable):
    """One row a patient or visit, numbers and categories."""

    modality: Literal["tabular"] = Field(description="Kind of data.")
    numeric: tuple[ColumnName, ...] = Field(default=(), description="Columns read as numbers.")
    categorical: dict[ColumnName, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Column -> its allowed values, one-hot encoded: columns by name, values in this "
        "order. A value outside the list is a finding; an empty cell is missing.",
    )
    missing: Literal["drop", "mean"] = Field(
        default="mean",
        description='"drop" leaves out rows with an empty cell; "mean" fills numeric cells with '
        "the mean used for standardising and one-hot cells with 0.",
    )
    standardise: Literal["federated", "site", "none"] = Field(
        default="federated",
        description='Whose mean and deviation scale the numeric columns: "federated" sums the '
        'moments of all sites once, "site" uses each site\'s own, "none" leaves values alone.',
    )

    @model_validator(mode="after")
    def _has_columns(self) -> "TabularData":
        names = [*self.numeric, *self.categorical]
        if not names:
            raise ValueError("name at least one column in numeric or categorical")
        if len(set(names)) != len(names):
            raise ValueError("a column is named twice in numeric and categorical")
        if self.label in names:
            raise ValueError(f"the label column {self.label!r} may not be a feature")
        if self.subject in names:
            raise ValueError(f"the subject column {self.subject!r} may not be a feature")
        return self

    @field_validator("categorical")
    @classmethod
    def _values(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for column, allowed in value.items():
            if len(allowed) < 2 or len(set(allowed)) != len(allowed):
                raise ValueError(f"column {column!r}: list at least two different values")
        # The order of keys in a table means nothing in TOML, so it must not order the features.
        return dict(sorted(value.items()))


class TextData(LabelledTable):
    """One document a row."""

    modality: Literal["text"] = Field(description="Kind of data.")
    text: ColumnName = Field(description="Column with the text.")
    max_tokens: int = Field(
        default=128, ge=8, le=512, description="Longer texts are cut, in tokens."
    )


class ImageData(LabelledTable):
    """One image a row of a manifest (a CSV beside the images) or of an npz file."""

    modality: Literal["image"] = Field(description="Kind of data.")
    file: ColumnName = Field(
        default="file",
        description="Manifest column with the image's path relative to the manifest.",
    )
    size: int = Field(
        default=224, ge=16, le=1024, description="Images are resized to size x size, in pixels."
    )


class TokenData(DataTable):
    """Sentences of tagged words (CoNLL: one word a line, blank line between sentences)."""

    modality: Literal["tokens"] = Field(description="Kind of data.")
    max_tokens: int = Field(
        default=128, ge=8, le=512, description="Longer sentences are cut, in word pieces."
    )


DataSpec = Annotated[
    TabularData | TextData | ImageData | TokenData, Field(discriminator="modality")
]


class IidPartition(Table):
    """Subjects dealt out at random, in equal shares."""

    kind: Literal["iid"] = Field(description="How rows are dealt out to sites.")
    seed: int = Field(default=0, ge=0, description="Seed of the partition.")


class DirichletPartition(Table):
    """Label skew: each class is dealt out by a Dirichlet draw (Hsu et al. 2019, section 3)."""

    kind: Literal["dirichlet"] = Field(description="How rows are dealt out to sites.")
    alpha: float = Field(default=0.5, gt=0.0, description="Concentration; small is very skewed.")
    min_subjects: Count = Field(
        default=10, description="Every site gets at least this many subjects."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the partition.")


class QuantityPartition(Table):
    """Quantity skew: site sizes follow one Dirichlet draw, labels stay mixed."""

    kind: Literal["quantity"] = Field(description="How rows are dealt out to sites.")
    alpha: float = Field(default=1.0, gt=0.0, description="Concentration; small is very uneven.")
    min_subjects: Count = Field(
        default=10, description="Every site gets at least this many subjects."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the partition.")


class ColumnPartition(Table):
    """The sites that the data has: a column names the hospital of each row."""

    kind: Literal["column"] = Field(description="How rows are dealt out to sites.")
    column: ColumnName = Field(description="Column that names the hospital.")
    values: dict[str, tuple[str, ...]] = Field(
        description="Site of the roster -> the column's values that belong to it."
    )

    @field_validator("values")
    @classmethod
    def _disjoint(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        named = [entry for values in value.values() for entry in values]
        twice = sorted({entry for entry in named if named.count(entry) > 1})
        if twice:
            raise ValueError(f"values given twice: {', '.join(twice)}")
        return value


Partition = Annotated[
    IidPartition | DirichletPartition | QuantityPartition | ColumnPartition,
    Field(discriminator="kind"),
]
