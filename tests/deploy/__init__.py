"""What `deploy/` says is true as far as it can be checked without a cluster."""
