"""From a place that holds images to uint8 arrays of one shape."""
