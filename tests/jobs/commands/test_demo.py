"""Test the evaluation of held-out species by the demo; `make demo` runs the complete demo."""

import pyarrow as pa
import pytest

from jobs.commands.demo import unseen_species
from retrieval.evaluation.relevance import SCORED_MATCHES
from retrieval.evaluation.results import Results
from retrieval.samples import HELD_OUT


def test_three_held_out_species_have_no_interval_over_species():
    """All 15 queries of held-out species are right, the one query of another species is wrong."""
    labels = [*HELD_OUT * 5, "elsewhere"]
    table = pa.table({
        "query_id": [f"q{n}" for n in range(16)], "label": labels, "top1": [1.0] * 15 + [0.0],
    })  # fmt: skip
    line, values = unseen_species(Results(table, SCORED_MATCHES.empty_table(), ("top1",), 0, 0))
    assert len(HELD_OUT) == 3
    assert line == (
        "the 15 queries of 3 species never trained on: Success@1 1.0000  [0.7961, 1.0000] for more "
        "queries of these, 3 species are too few for an interval over species; guessing gives 0.08"
    )
    assert values == {
        "Success@1_unseen": pytest.approx(1.0), "Success@1_unseen_low": None,
        "Success@1_unseen_high": None,
    }  # fmt: skip
