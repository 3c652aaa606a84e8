"""Parts of every command: progress, results, run.json, interrupts and checks of the output."""
