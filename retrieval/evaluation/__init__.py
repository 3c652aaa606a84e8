"""What is relevant, and how well a ranking finds it."""
