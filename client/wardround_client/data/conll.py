"""Tagged words: one word a line, ``word<TAB or space>tag``, a blank line between sentences.

Further fields between word and tag are ignored (the four-column layout of 2003). Tags may be IOB
(``B-`` only between touching entities) or IOB2; the result is IOB2. Lines ``-DOCSTART-`` separate
documents and give the column ``document``.
"""

from dataclasses import dataclass

from wardround_client.data.columns import decode_text
from wardround_common.errors import DataError

_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True, slots=True)
class Sentences:
    """The sentences of one file.

    Attributes:
        words: words of each sentence.
        tags: IOB2 tags of each sentence, one a word.
        documents: number of the document of each sentence, from 1; 0 where the file marks none.
    """

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]
    documents: tuple[int, ...]


def read_conll(data: bytes, name: str) -> Sentences:
    """Read one file.

    Args:
        data: the file's content, UTF-8.
        name: the file's name, for messages.

    Raises:
        DataError: ``not_utf8``, or ``conll_malformed`` with the line that has no tag.
    """
    words: list[tuple[str, ...]] = []
    tags: list[tuple[str, ...]] = []
    documents: list[int] = []
    document = 0
    sentence: list[tuple[str, str]] = []
    lines = decode_text(data, name).replace("\r\n", "\n").split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        starts_document = line.startswith(_DOCUMENT)
        if line.strip() and not starts_document:
            sentence.append(_word_and_tag(line, name, number))
            continue
        if sentence:
            words.append(tuple(word for word, _ in sentence))
            tags.append(to_iob2([tag for _, tag in sentence]))
            documents.append(document)
            sentence = []
        document += starts_document
    return Sentences(tuple(words), tuple(tags), tuple(documents))


def _word_and_tag(line: str, name: str, number: int) -> tuple[str, str]:
    """The first and the last field of a line."""
    fields = line.strip().split("\t") if "\t" in line else line.split()
    if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
        raise DataError(
            f"{name}: line {number}: a word and its tag are needed, separated by a tab or a space",
            code="conll_malformed",
        )
    return fields[0].strip(), fields[-1].strip()


def to_iob2(tags: list[str]) -> tuple[str, ...]:
    """Rewrite IOB or IOB2 tags as IOB2: every entity starts with ``B-``.

    ``B_type`` is read as ``B-type``. Anything else is left as it is, for the schema to refuse.
    """
    normal: list[str] = []
    previous = "O"
    for raw in tags:
        tag = f"{raw[0]}-{raw[2:]}" if raw[:2] in {"B_", "I_"} else raw
        if tag.startswith("I-") and previous[2:] != tag[2:]:
            tag = f"B-{tag[2:]}"
        normal.append(tag)
        previous = tag
    return tuple(normal)
