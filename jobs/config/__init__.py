"""Command-line options, the settings of each command, and the parsing of typed values."""
