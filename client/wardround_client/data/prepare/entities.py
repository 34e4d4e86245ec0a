"""BC5CDR: chemicals and diseases in PubMed abstracts, as tagged sentences."""

from wardround_client.data.conll import read_conll
from wardround_client.data.prepare.files import Prepared, Sources

PARTS = ("train", "devel", "test")


def prepare(sources: Sources) -> Prepared:
    """A folder ``conll`` with one IOB2 file a part."""
    files: Prepared = {}
    for part in PARTS:
        sentences = read_conll(sources[f"{part}.tsv"], f"{part}.tsv")
        blocks = [
            "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
            for words, tags in zip(sentences.words, sentences.tags, strict=True)
        ]
        files[f"conll/{part}.conll"] = "\n".join(blocks).encode()
    return files
