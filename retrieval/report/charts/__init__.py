"""The pictures of the tool: pure functions from tables and arrays to SVG and PNG."""
