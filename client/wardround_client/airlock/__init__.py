"""The airlock: a gRPC service on a Unix socket between the site node and the site worker."""
