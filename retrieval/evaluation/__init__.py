"""Ground truth, relevance of matches, retrieval measures and their confidence intervals.

Contains the two kinds of ground truth (labels, qrels), the measures, the comparison of two
rankings, score thresholds, and leave-one-out evaluation of stored vectors. Imported by
`retrieval.report`, `retrieval.training` and `jobs`; imports search and the packages below it.
"""
