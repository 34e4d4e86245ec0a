"""The aggregator: round engine, admission, aggregation, simulation, report."""
