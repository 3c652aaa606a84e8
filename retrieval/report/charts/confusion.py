"""The classes that are taken for one another, with photos: those mistaken beside those meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.report.charts.contact_print import BESIDE, Ranking, Row, Shown, contact_print

PAIRS = 10
"""Pairs of classes that are shown: the most frequent mistakes."""


def confusion_print(
    pairs: Sequence[Mapping[str, object]], typical: Sequence[Sequence[bytes]],
    mistaken: Sequence[Sequence[bytes]], others: Sequence[Sequence[bytes]],
) -> bytes:  # fmt: skip
    """Draw pairs of table CONFUSION as PNG, each with photos (JPEG) of both classes.

    Of pair n, `typical[n]` are photos of its class that were told right, `mistaken[n]` those that
    were told wrong, `others[n]` photos of the class they were taken for.
    """
    heads = [
        Ranking("taken for another class", "cosine", BESIDE),
        Ranking("photos of that class", "cosine", BESIDE),
    ]
    rows = [
        Row(
            Shown(
                f"{pair['label']}", right[0] if right else None, f"{pair['images']} of {pair['of']}"
            ),
            (
                tuple(Shown(f"{pair['label']}", photo, grade=0) for photo in wrong[:BESIDE]),
                tuple(Shown(f"{pair['predicted']}", photo) for photo in other[:BESIDE]),
            ),
        )
        for pair, right, wrong, other in zip(pairs, typical, mistaken, others, strict=True)
    ]
    said = "Validation photos that the classifier told wrong, and photos of the class they were "
    return contact_print(
        "What is taken for what, most frequent first", heads, rows, said=said + "taken for.",
        first="Told right",
    )  # fmt: skip
