"""Types, ranges and values of a federation or site file in plain words."""

import json
from typing import Final

from wardround_common.spec.outline import FileKind, Schema, resolved
from wardround_common.types import HEX_DIGEST, SITE_NAME

PATTERN_WORDS: Final = {
    SITE_NAME: "lower-case letters, digits and hyphens, starting with a letter, at most 40 in all",
    HEX_DIGEST: "64 lower-case hexadecimal digits",
    r"^[a-z0-9][a-z0-9-]{0,62}$": "lower-case letters, digits and hyphens, at most 63 in all",
    r"^(none|(torchvision|timm|hf|package|file):\S{1,300})$": 'none, or "torchvision:", "timm:", '
    '"hf:", "package:" or "file:" followed by a name without spaces',
    r"^(cpu|cuda(:\d+)?)$": "cpu, cuda, or cuda: followed by a number",
    r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$": "host and port, such as aggregator.example.org:443",
    r"^[A-Za-z0-9][A-Za-z0-9.\-]{0,252}$": "the name of a host, or an IPv4 address",
    r"^[0-9A-Za-z.\-\[\]:]{1,64}$": "an address of this machine, such as 0.0.0.0 or [::]",
    rf"{HEX_DIGEST[:-1]}$|^none$": "none, or 64 lower-case hexadecimal digits",
    r"^[A-Za-z0-9_.*]{1,200}$": "names of tensors, with * for any characters",
    r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$": "a span of the day, such as "
    "20:00-06:00",
    r"^[a-z][a-z0-9_]{0,39}$": "lower-case letters, digits and _, starting with a letter",
    r"^[^\x00-\x1f\"\\]+$": "text without quotes and backslashes",
}


def toml_literal(value: object) -> str:
    """A value as TOML would write it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_literal(entry) for entry in value)}]"
    if isinstance(value, dict):
        entries = (f"{key} = {toml_literal(entry)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def _range_words(schema: Schema, low: str, high: str) -> str:
    """``from 1 to 256``, ``of at least 1``, ``above 0 and below 1``; empty without limits."""
    if low in schema and high in schema:
        return f"from {_number(schema[low])} to {_number(schema[high])}"
    phrases = {
        low: "of at least",
        "exclusiveMinimum": "above",
        high: "of at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{phrase} {_number(schema[at])}" for at, phrase in phrases.items() if at in schema]
    return " and ".join(words).replace(" and of at", " and at")


def _list_words(kind: FileKind, schema: Schema) -> str:
    entries = _range_words(schema, "minItems", "maxItems").replace("from ", "")
    words = f"list of {entries.removeprefix('of ')} entries" if entries else "list of entries"
    return f"{words}, each {type_words(kind, schema['items'])}"


def _text_words(schema: Schema) -> str:
    if "pattern" in schema:
        pattern = schema["pattern"]
        return f"text: {PATTERN_WORDS.get(pattern, pattern)}"
    if schema.get("minLength") == 1 and "maxLength" in schema:
        return f"text of 1 to {schema['maxLength']} characters"
    return "text, not empty" if schema.get("minLength") == 1 else "text"


def type_words(kind: FileKind, schema: Schema) -> str:
    """The type and range of a value in plain words.

    Args:
        kind: the file, for references.
        schema: JSON Schema of the value.

    Returns:
        For example ``whole number from 1 to 256`` or ``"none", "balanced", or list of entries...``.
    """
    schema = resolved(kind, schema)
    if "anyOf" in schema:
        return ", or ".join(type_words(kind, member) for member in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(map(toml_literal, schema.get("enum") or [schema["const"]]))
    limits = _range_words(schema, "minimum", "maximum")
    match schema.get("type"):
        case "boolean":
            words = "true or false"
        case "integer":
            words = f"whole number {limits}".strip()
        case "number":
            words = f"number {limits}".strip()
        case "array":
            words = _list_words(kind, schema)
        case "string":
            words = _text_words(schema)
        case _:
            entry = schema.get("additionalProperties")
            words = f"table of name = {type_words(kind, entry)}" if entry else "a table"
    return words
