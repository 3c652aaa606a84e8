"""Picture of the most frequent confusions of a classifier, with photos of both classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.report.charts.contact_print import (
    SIDE_BY_SIDE_MATCHES,
    Photo,
    Ranking,
    Row,
    draw_contact_print,
)

PAIRS = 10
"""Most class pairs shown."""


def draw_confusion_print(
    pairs: Sequence[Mapping[str, object]], typical: Sequence[Sequence[bytes]],
    mistaken: Sequence[Sequence[bytes]], others: Sequence[Sequence[bytes]],
) -> bytes:  # fmt: skip
    """Return a PNG of pairs of table CONFUSION, each with JPEG photos of both classes.

    For pair n, `typical[n]` are correctly classified photos of the class, `mistaken[n]` photos that
    were misclassified, `others[n]` photos of the class that was predicted.
    """
    heads = [
        Ranking("misclassified photos", "cosine", SIDE_BY_SIDE_MATCHES),
        Ranking("photos of the predicted class", "cosine", SIDE_BY_SIDE_MATCHES),
    ]
    rows = [
        Row(
            Photo(
                f"{pair['label']}",
                correct[0] if correct else None,
                f"{pair['images']} of {pair['of']}",
            ),
            (
                tuple(
                    Photo(f"{pair['label']}", photo, grade=0)
                    for photo in misclassified[:SIDE_BY_SIDE_MATCHES]
                ),
                tuple(
                    Photo(f"{pair['predicted']}", photo)
                    for photo in predicted[:SIDE_BY_SIDE_MATCHES]
                ),
            ),
        )
        for pair, correct, misclassified, predicted in zip(
            pairs, typical, mistaken, others, strict=True
        )
    ]
    caption = "Misclassified validation photos beside photos of the predicted class."
    return draw_contact_print(
        "Most frequent confusions", heads, rows, caption=caption,
        first_heading="Correct",
    )  # fmt: skip
