"""Commands of lookalike: the command line, orchestration on Ray, and progress and results."""
