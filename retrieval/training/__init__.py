"""From labelled photos to a bundle."""
