"""Continuous sync: what NexHealth posts is verified, stored, and applied to the rows."""
