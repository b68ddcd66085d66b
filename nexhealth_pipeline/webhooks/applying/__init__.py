"""What waits in `nexhealth_webhook_events` becomes rows: `apply.apply_pending`; `replaying` applies events once more."""
