"""Where images come from: one class a file."""
