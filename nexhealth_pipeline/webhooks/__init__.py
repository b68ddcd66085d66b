"""Continuous sync: what NexHealth posts is verified, stored, and applied to the rows.

Three packages, none of which imports another (tests/test_architecture.py):

- `registering`: endpoint and subscriptions at NexHealth are made, compared and removed, and watched at night.
- `receiving`: the process that NexHealth posts to; an event is judged, stored, and answered after the commit.
- `applying`: what waits in the table is taken, and each event's records, or what it hints at, are loaded.

They meet in two tables: `nexhealth_webhooks`, whose secrets the receiver checks signatures with, and
`nexhealth_webhook_events`. What they share lies beside them: those secrets, and what an event's name means.
"""
