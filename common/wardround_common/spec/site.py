"""``site.toml``: what one hospital writes about itself. It stays at the hospital."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from wardround_common.spec.base import ColumnName, SiteName, Table
from wardround_common.spec.data import Partition
from wardround_common.spec.lending import Lending

DataFormat = Literal["csv", "parquet", "jsonl", "npz", "conll"]


class SharedPart(Table):
    """The part of shared data that a simulated site holds."""

    partition: Partition = Field(description="How the data is dealt out to the roster.")
    sites: tuple[SiteName, ...] = Field(min_length=1, description="The roster, in order.")
    subset: int | None = Field(
        default=None, ge=1, description="First so many training examples only."
    )


class SiteData(Table):
    """Where the site's data is and how its columns map to the federation's schema."""

    format: DataFormat = Field(
        description='"csv", "parquet", "jsonl" (tables, text, image manifests), "npz" (images), '
        '"conll" (tagged words).'
    )
    path: str = Field(
        min_length=1,
        description="The file, relative to site.toml. For conll and npz a folder may be named: "
        "its files are read in name order and a file's stem is the value of the column 'part'.",
    )
    rename: dict[ColumnName, ColumnName] = Field(
        default_factory=dict, description="Column in the file -> column of the federation's schema."
    )
    shared_part: SharedPart | None = Field(
        default=None,
        description="Written by the simulator: which part of shared data this site holds.",
    )


class Compute(Lending):
    """What the site lends to training."""

    cache: str = Field(
        default="cache",
        description="Folder for cached features, relative to site.toml. It holds "
        "data derived from patients: protect it like the data.",
    )
    lora_rank: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Largest rank of LoRA adapters that this site trains and sends; absent: the "
        'federation\'s. A smaller one needs tuning.merge = "product" in federation.toml.',
    )
    cache_gib: float = Field(
        default=4.0,
        ge=0.0,
        description="Largest file of block inputs that is kept, in GiB, for each part of the data. "
        "Where only the last blocks are trained and their inputs would take more, the whole "
        "backbone runs at every step instead: slower, and different in last bits. A simulation "
        "uses the default.",
    )


class SiteSpec(Table):
    """The whole file."""

    name: SiteName = Field(description="This site's name in the federation's roster.")
    data: SiteData = Field(description="Where the data is and what its columns are called.")
    compute: Compute = Field(
        default_factory=Compute, description="What the site lends to training."
    )


def resolve(base: Path, path: str) -> Path:
    """A path of a file relative to the folder of the file that names it."""
    return (base / Path(path).expanduser()).resolve()
