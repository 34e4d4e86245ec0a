"""The published JSON Schema of ``report.json``.

``python -m wardround_server.report.schema > docs/report.schema.json`` writes it anew.
"""

import json
import sys

from wardround_server.report.model import Report


def schema_text() -> str:
    """The schema as indented JSON with sorted keys, ending in a newline."""
    schema = Report.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
