"""The report of a run: ``report.json`` and the self-contained ``report.html`` made from it."""
