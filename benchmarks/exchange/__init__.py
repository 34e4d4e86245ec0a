"""The exchange of updates: our packed array beside Flower's records, codecs, bytes as sent."""
