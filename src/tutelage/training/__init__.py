"""What every gradient stage shares: optimizer and schedules, updates, guards, checkpoints."""
