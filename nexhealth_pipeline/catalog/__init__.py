"""What NexHealth offers, as data: one declaration per collection."""
