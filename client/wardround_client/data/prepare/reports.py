"""Chest X-ray reports of Indiana University (Open-I), from the archive in ``torchxrayvision``.

Only the FINDINGS section is kept: the impression gives the answer away. A report is ``normal``
when its manual coding says ``normal`` and nothing else. Reports without findings are left out.
"""

import io
import tarfile
import xml.etree.ElementTree as ET

from wardround_client.data.prepare.files import Prepared, Sources, csv_bytes
from wardround_common.errors import DataError

COLUMNS = ("id", "subject", "findings", "label")
MAX_REPORT_BYTES = 64 * 1024
_MAX_REPORTS = 10_000


def prepare(sources: Sources) -> Prepared:
    """One row a report, in the order of the reports' numbers."""
    rows: list[tuple[str, str, str, str]] = []
    content = io.BytesIO(sources["NLMCXR_reports.tgz"])
    with tarfile.open(fileobj=content, mode="r:gz") as archive:
        for place, member in enumerate(archive):
            if place > _MAX_REPORTS or member.size > MAX_REPORT_BYTES:
                raise DataError("NLMCXR_reports.tgz: larger than it can be", code="source_corrupt")
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            row = None if file is None else report_row(file.read())
            if row is not None:
                rows.append(row)
    rows.sort(key=lambda row: int(row[0].removeprefix("CXR")))
    return {"data.csv": csv_bytes(COLUMNS, rows)}


def report_row(data: bytes) -> tuple[str, str, str, str] | None:
    """Identifier, subject, findings and label of one report; None without findings.

    Args:
        data: an XML document; one that declares entities or a document type is refused, so no
            expansion can take place.

    Raises:
        DataError: ``source_corrupt``.
    """
    if b"<!" in data:
        raise DataError("a report declares a document type", code="source_corrupt")
    try:
        root = ET.fromstring(data)  # noqa: S314  no declarations, size capped, pinned by SHA-256
    except ET.ParseError as error:
        raise DataError("a report is not XML", code="source_corrupt") from error
    sections = [
        section.text or ""
        for section in root.iter("AbstractText")
        if section.get("Label") == "FINDINGS"
    ]
    findings = " ".join(" ".join(sections).split())
    identifier = root.find("uId")
    if not findings or identifier is None:
        return None
    coded = [major.text for major in root.findall("MeSH/major")]
    number = identifier.get("id", "")
    return number, number, findings, "normal" if coded == ["normal"] else "abnormal"
