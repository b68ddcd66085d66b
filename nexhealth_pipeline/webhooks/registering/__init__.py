"""Endpoint and subscriptions at NexHealth: `registration.set_up` and `remove`, and `checking`, which the watchdog asks."""
