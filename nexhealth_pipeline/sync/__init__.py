"""Moving a slice from the client to the warehouse: plan, read, load, remember."""
