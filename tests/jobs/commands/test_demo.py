"""What the demo says of the species that its network never saw; the whole demo is `make demo`."""

import pyarrow as pa
import pytest

from jobs.commands.demo import unseen_species
from retrieval.evaluation.relevance import SCORED_MATCHES
from retrieval.evaluation.results import Results
from retrieval.samples import HELD_OUT


def test_three_species_say_nothing_certain_of_others():
    """15 queries of 15 are right, five of each species that was held out, and one of another."""
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
