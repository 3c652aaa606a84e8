"""What every command needs while it runs: progress, results, run.json, interrupts."""
