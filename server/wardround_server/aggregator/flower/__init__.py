"""All of flwr's private interfaces that the aggregator uses; nothing outside this package does.

flwr is pinned to one version; ``tests/contract/test_flower_contract.py`` says what is relied on.
"""
