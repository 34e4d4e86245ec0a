"""``site.toml``: what one hospital writes about itself. It stays at the hospital."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wardround_common.spec.base import ColumnName, Count, SiteName, Table
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

    threads: Count | None = Field(
        default=None,
        description="Threads of PyTorch; absent: all processors. The number is part of the result: "
        "last bits of sums depend on it.",
    )
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


class Worker(Table):
    """The process that reads the data (`wardround site worker`)."""

    socket: str = Field(
        default="airlock/airlock.sock",
        max_length=90,
        description="Unix socket of the airlock, relative to site.toml. It is for the worker's "
        "user and the group of its folder, which the node's user must be in.",
    )
    state: str = Field(
        default="worker-state",
        description="Folder for answers that were given and for what coding lost, relative to "
        "site.toml; for the worker's user alone.",
    )
    audit_years: Annotated[int, Field(ge=1, le=100)] = Field(
        default=6,
        description="Years for which entries of the audit log are kept; older ones are let go when "
        "the worker starts.",
    )
    network: Literal["refuse", "allow"] = Field(
        default="refuse",
        description='"refuse": the worker does not start where it would have a network; "allow": it '
        "does, for trials. Sockets other than Unix ones are given up either way, but for those "
        "of the loopback that compute.devices above 1 needs.",
    )


class Node(Table):
    """The process that reaches the aggregator (`wardround site node`)."""

    aggregator: str = Field(
        pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$", description="Aggregator's front door, host:port."
    )
    enrolment: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$",
        description="Where the site is given new keys, host:port. Absent: the front door.",
    )
    ca: str = Field(default="ca.pem", description="Certificate of the consortium's authority.")
    coordinator: str = Field(
        default="coordinator.pub",
        description="Public key that signs every question, from its kit; policy.toml names it.",
    )
    key: str = Field(
        default="node.key", description="Private key that Flower knows this node by (ECDSA)."
    )
    certificate: str = Field(
        default="site.pem", description="Client certificate of this site, from its kit."
    )
    certificate_key: str = Field(default="site.key", description="Its private key.")
    poll_s: float = Field(
        default=0.1, ge=0.02, le=60.0, description="Seconds between two looks for a message."
    )
    state: str = Field(
        default="node-state", description="Folder for what the node remembers; holds no data."
    )
    metrics: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$",
        description="Address of the Prometheus endpoint, host:port. Absent: none.",
    )


class SiteSpec(Table):
    """The whole file."""

    name: SiteName = Field(description="This site's name in the federation's roster.")
    data: SiteData = Field(description="Where the data is and what its columns are called.")
    compute: Compute = Field(
        default_factory=Compute, description="What the site lends to training."
    )
    federations: tuple[str, ...] = Field(
        default=(),
        description="Federation files that this site takes part in, relative to site.toml. A "
        "question about any other file is refused.",
    )
    policy: str = Field(
        default="policy.toml",
        min_length=1,
        description="The file that says what may leave, relative to site.toml. Without it the worker "
        "does not start.",
    )
    worker: Worker = Field(
        default_factory=Worker, description="The process that reads the data; it has no network."
    )
    node: Node | None = Field(
        default=None, description="The process that reaches the aggregator; it has no data."
    )


def resolve(base: Path, path: str) -> Path:
    """A path of a file relative to the folder of the file that names it."""
    return (base / Path(path).expanduser()).resolve()
