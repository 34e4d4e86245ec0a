"""The aggregator's end of the tensor stream: sessions, their server, and the carrier over them."""
