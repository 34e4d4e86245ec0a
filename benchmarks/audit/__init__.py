"""What an entry of the audit log costs, beside logs that promise less."""
