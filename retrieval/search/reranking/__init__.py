"""Re-rank the first matches of each query from the stored vectors of these matches.

Contains the methods, each a function of the cosines or vectors of one query and its candidates, and
the step that reads them for a block of queries and writes the new order.
"""
