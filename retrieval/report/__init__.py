"""Pages and pictures that a person opens."""
