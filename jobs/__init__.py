"""What a person or a cluster starts: one file a verb."""
