"""The audit log: what must be provable later. Append-only, hash-chained, signed."""
