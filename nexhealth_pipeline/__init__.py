"""Copies a dental practice's data out of NexHealth into PostgreSQL and keeps the copy right."""

__version__ = "0.1.0"
