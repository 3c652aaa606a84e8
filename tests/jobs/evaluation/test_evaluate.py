"""Test `evaluate` without Ray: ground truth options, measures and errors."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands import verify
from jobs.config.settings import EvaluateSettings, ReportSettings, VerifySettings
from jobs.evaluation.evaluate import start
from jobs.reporting import report
from retrieval.core.errors import Damaged, InputError, Mismatch, UsageError
from retrieval.evaluation.ground_truth import UNKNOWN
from retrieval.index import plan, recall_interval
from tests.jobs.in_process import index_in_process, rank_in_process
from tests.sample_matches import write_matches
from tests.sample_stores import write_store

ROWS, QUERIES, CLASSES = 210, 28, 7  # images a00000.jpg, …; the class is row % 7


def draw_vectors(rows, seed, noise):
    generator = np.random.default_rng(seed)
    centres = np.eye(CLASSES, 12)[np.arange(rows) % CLASSES]
    return (centres + noise * generator.normal(size=(rows, 12))).astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write a gallery of overlapping classes, an index, and an approximate and an exact ranking."""
    root = tmp_path_factory.mktemp("evaluate")
    write_store(root / "gallery", draw_vectors(ROWS, 0, 0.5), sha256=[f"g{n}" for n in range(ROWS)])
    write_store(
        root / "queries", draw_vectors(QUERIES, 1, 0.5), sha256=[f"q{n}" for n in range(QUERIES)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        patch.setattr(recall_interval, "LOOK_SIZES", (5, 10, 15))  # other queries are not exact
        index_in_process(root / "gallery", root / "index", index_factory="IVF16,SQfp16")
        rank(root, "m", nprobe=2, format="trec")
        rank(root, "exact", recall=1.0)
    return root


def rank(root, name, queries="queries", **options):
    defaults = {"top_k": 25, **options}
    return rank_in_process(root / "index", root / queries, root / name, **defaults)


def run_evaluate(path, **options):
    return start(EvaluateSettings(matches=str(path), **options))


def read_rows(path):
    table = pq.read_table(path / "matches")
    rankings = {}
    for row in table.to_pylist():
        rankings.setdefault(row["query_id"], []).append(int(row["image_id"][1:6]))
    return rankings


def image_name(row):
    return f"a{row:05d}.jpg"


def average_precision(ranking, relevant):
    hits = [position for position, row in enumerate(ranking) if row in relevant]
    return sum((n + 1) / (position + 1) for n, position in enumerate(hits)) / len(relevant)


# --- measures -----------------------------------------------------------------------------------


def test_measures_equal_a_plain_loop(root):
    values = run_evaluate(root / "m").values
    rankings = read_rows(root / "m")
    relevant = {q: {r for r in range(ROWS) if r % 7 == int(q[1:6]) % 7} for q in rankings}
    expected = [average_precision(ranking, relevant[q]) for q, ranking in rankings.items()]
    assert values["AP"] == pytest.approx(np.mean(expected))
    assert values["Success@1"] == np.mean([rankings[q][0] in relevant[q] for q in rankings])
    assert values["R@10"] == pytest.approx(
        np.mean([len(relevant[q] & set(rankings[q][:10])) / len(relevant[q]) for q in rankings])
    )
    expected_at_10 = [
        average_precision(ranking[:10], relevant[q]) * len(relevant[q]) / min(10, len(relevant[q]))
        for q, ranking in rankings.items()
    ]
    assert values["mAP@10"] == pytest.approx(np.mean(expected_at_10))
    assert values["AP_low"] < values["AP"] < values["AP_high"]
    assert (values["queries"], values["left_out"]) == (QUERIES, 0)
    assert sorted(row["label"] for row in values["classes"]) == [f"class{n}" for n in range(7)]
    json.dumps(values, allow_nan=False)


def test_measures_equal_trec_eval(root):
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    run = list(ir_measures.read_trec_run(str(root / "m/matches.trec")))
    qrels = [
        ir_measures.Qrel(image_name(q), image_name(r), 1)
        for q in range(QUERIES)
        for r in range(ROWS)
        if q % 7 == r % 7
    ]
    reference = ir_measures.calc_aggregate(
        [
            ir_measures.parse_measure(m)
            for m in ("AP", "AP@10", "nDCG", "nDCG@10", "RR", "R@10", "P@10", "Success@3")
        ],
        qrels,
        run,
    )
    values = run_evaluate(root / "m").values
    values_by_name = {str(key): values[str(key)] for key in reference}
    assert values_by_name == pytest.approx({str(key): value for key, value in reference.items()})


def test_excluded_self_is_not_counted_as_missed(root):
    """A gallery of separate classes is ranked against itself with `exclude_self`."""
    write_store(root / "clear", draw_vectors(70, 2, 0.01))
    index_in_process(root / "clear", root / "clear-index")
    rank_in_process(root / "clear-index", root / "clear", root / "self", top_k=9, exclude_self=True)
    values = run_evaluate(root / "self").values
    assert (values["AP"], values["nDCG"], values["R@10"]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("labels", [False, True])
def test_filtered_images_are_not_counted_as_missed(root, tmp_path, labels):
    """The width is row % 5, so the filter passes 6 of the 30 images of a class."""
    if not (root / "filtered").exists():
        rank(root, "filtered", filter="width = 2", recall=1.0, exclude_self=True, top_k=42)
    options = {"labels": write_labels(tmp_path / "l.csv")} if labels else {}
    file = tmp_path / "q.parquet"
    run_evaluate(root / "filtered", per_query=str(file), **options)
    table = pq.read_table(file)
    assert table["relevant"].unique().to_pylist() == [ROWS // 7 // 5]
    assert table["recall10"].to_numpy().max() <= 1


def test_unmatched_queries_count_as_wrong(root):
    manifest = rank(root, "near", min_score=0.75, recall=1.0)
    unmatched = manifest.counts["unmatched"]
    assert 0 < unmatched < QUERIES
    (ledger,) = (root / "near/failures").iterdir()
    lines = pq.read_table(ledger).to_pylist()
    rankings = read_rows(root / "near")
    unmatched_ids = {image_name(q) for q in range(QUERIES)} - set(rankings)
    assert {line["image_id"] for line in lines} == unmatched_ids
    assert {(line["stage"], line["error"]) for line in lines} == {("rank", "NoMatch")}
    result = run_evaluate(root / "near")
    assert result.values["queries"] == QUERIES
    right = sum(int(q[1:6]) % 7 == ranking[0] % 7 for q, ranking in rankings.items())
    assert result.values["Success@1"] == right / QUERIES
    assert f"note: {unmatched} queries without an answer count as wrong" in result.lines


def test_limit_of_top_k_on_map_is_reported(root):
    lines = run_evaluate(root / "m").lines
    note = "with --top-k 25 and 30 relevant images per query on average, mAP can be 0.833 at most"
    assert f"note: {note}" in lines


# --- labels of a file ---------------------------------------------------------------------------


def write_labels(path, gallery=range(ROWS), queries=range(QUERIES), label=lambda row: row % 7):
    lines = [f"gallery,{image_name(r)},{label(r)}" for r in gallery]
    lines += [f"queries,{image_name(q)},{label(q)}" for q in queries]
    path.write_text("split,image_id,label\n" + "\n".join(lines) + "\n")
    return str(path)


def test_labels_file_replaces_stored_labels(root, tmp_path):
    """The file has two classes instead of seven, and images that the gallery lacks."""
    labels = write_labels(tmp_path / "l.csv", gallery=range(ROWS + 50), label=lambda r: r % 2)
    values = run_evaluate(root / "m", labels=labels).values
    relevant = {
        q: {r for r in range(ROWS) if r % 2 == int(q[1:6]) % 2} for q in read_rows(root / "m")
    }
    precisions = [
        average_precision(ranking, relevant[q]) for q, ranking in read_rows(root / "m").items()
    ]
    assert values["AP"] == pytest.approx(np.mean(precisions))


def test_incomplete_labels_file_is_reported(root, tmp_path):
    labels = write_labels(tmp_path / "l.csv", gallery=range(100), queries=range(8))
    result = run_evaluate(root / "m", labels=labels)
    assert (result.values["queries"], result.values["left_out"]) == (8, QUERIES - 8)
    assert f"note: {QUERIES - 8} queries without label are left out" in result.lines
    assert f"note: {ROWS - 100} gallery images without label count as wrong" in result.lines


def test_classes_without_gallery_images_are_reported(root, tmp_path):
    labels = write_labels(tmp_path / "l.csv", gallery=range(0, ROWS, 7))
    result = run_evaluate(root / "m", labels=labels)
    assert any(
        line.startswith("note: 24 queries are of classes that no gallery image has (1, 2, 3 and 3 ")
        for line in result.lines
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": []}, "no query of .* has a label, .*--labels contains other ids"),
        ({"queries": range(900, 990)}, r"its first is 'a00900.jpg', theirs 'a00000.jpg'"),
        (
            {"gallery": range(900, 990)},
            "contains no image of the gallery .*'a00900.jpg'.*'a00000.jpg'",
        ),
        ({"gallery": []}, "contains no image of the gallery"),
        (
            {"label": lambda r: f"{r % 7}"[::-1] + "xy"[r < QUERIES], "gallery": range(30, ROWS)},
            "no image of the gallery of .* has the label of any query",
        ),
    ],
)
def test_unrelated_labels_file_is_refused(root, tmp_path, options, message):
    labels = write_labels(tmp_path / "l.csv", **options)
    with pytest.raises(InputError, match=message):
        run_evaluate(root / "m", labels=labels)


def test_labels_file_is_used_without_the_index(root, tmp_path):
    import shutil

    shutil.copytree(root / "m", tmp_path / "m")
    labels = write_labels(tmp_path / "l.csv")
    before = run_evaluate(tmp_path / "m", labels=labels).values
    (root / "index").rename(root / "gone")
    try:
        after = run_evaluate(tmp_path / "m", labels=labels).values
        values_without_labels = run_evaluate(tmp_path / "m").values
    finally:
        (root / "gone").rename(root / "index")
    assert before["AP"] == after["AP"] == values_without_labels["AP"]


# --- qrels --------------------------------------------------------------------------------------


def write_qrels(path, pairs):
    path.write_text("".join(f"{q} 0 {x} {grade}\n" for q, x, grade in pairs))
    return str(path)


def test_qrels_and_labels_give_equal_measures(root, tmp_path):
    pairs = [
        (image_name(q), image_name(r), 1) for q in range(QUERIES) for r in range(q % 7, ROWS, 7)
    ]
    qrels = write_qrels(tmp_path / "qrels", pairs)
    by_labels, by_qrels = (
        run_evaluate(root / "m").values,
        run_evaluate(root / "m", qrels=qrels).values,
    )
    for key in ("AP", "AP_low", "nDCG", "Success@3", "R@10", "RR", "thresholds", "classes"):
        assert by_labels[key] == by_qrels[key]


def test_junk_matches_are_ignored_and_counted(root, tmp_path):
    ranking = read_rows(root / "m")[image_name(0)]
    pairs = [(image_name(0), image_name(ranking[0]), 7), (image_name(0), image_name(ranking[1]), 1)]
    qrels = write_qrels(tmp_path / "qrels", pairs)
    result = run_evaluate(root / "m", qrels=qrels, junk_grade=7)
    assert (result.values["Success@1"], result.values["queries"]) == (1, 1)
    assert "note: 1 matches were ignored as junk" in result.lines
    assert f"note: {QUERIES - 1} queries without a relevant image in --qrels are left out" in (
        result.lines
    )


def test_qrels_queries_without_matches_count_as_wrong(root, tmp_path):
    ranking = read_rows(root / "m")[image_name(0)]
    pairs = [(image_name(0), image_name(ranking[0]), 1), ("never-asked.jpg", image_name(1), 1)]
    result = run_evaluate(root / "m", qrels=write_qrels(tmp_path / "qrels", pairs))
    assert (result.values["Success@1"], result.values["queries"]) == (1 / 2, 2)
    assert "note: 1 queries without an answer count as wrong" in result.lines


def test_qrels_of_other_queries_are_refused(root, tmp_path):
    qrels = write_qrels(tmp_path / "qrels", [("other.jpg", image_name(1), 1)])
    with pytest.raises(
        Mismatch, match=r"contains none of the queries of .*'other.jpg', theirs 'a000"
    ):
        run_evaluate(root / "m", qrels=qrels)


def test_qrels_of_another_gallery_are_reported(root, tmp_path):
    qrels = write_qrels(tmp_path / "qrels", [(image_name(0), "other.jpg", 1)])
    result = run_evaluate(root / "m", qrels=qrels)
    assert result.values["AP"] == 0
    assert any("check that it is for this gallery" in line for line in result.lines)


# --- exact matches, comparison, bounds ----------------------------------------------------------


def test_loss_is_split_between_backbone_and_index(root):
    exact, result = (
        run_evaluate(root / "exact").values,
        run_evaluate(root / "m", exact_matches=str(root / "exact")),
    )
    assert result.values["AP_lost_by_backbone"] == pytest.approx(1 - exact["AP"])
    assert result.values["AP_lost_by_index"] == pytest.approx(exact["AP"] - result.values["AP"])
    # lists hold vectors of one class, so the approximate ranking may have a higher AP
    assert abs(result.values["AP_lost_by_index"]) > 0.01
    assert any(line.startswith("  AP: ") and "by the index" in line for line in result.lines)
    with pytest.raises(Mismatch, match="is not exact; rank again with --recall exact"):
        run_evaluate(root / "exact", exact_matches=str(root / "m"))
    rank(root, "more", recall=1.0, top_k=26)
    with pytest.raises(Mismatch, match=r"differs from .* in top_k; rank the same"):
        run_evaluate(root / "m", exact_matches=str(root / "more"))


def test_rankings_are_compared_by_query(root):
    result = run_evaluate(root / "exact", compare=str(root / "m"))
    exact, approximate = run_evaluate(root / "exact").values, run_evaluate(root / "m").values
    assert result.values["compared"] == QUERIES
    assert result.values["AP_diff"] == pytest.approx(exact["AP"] - approximate["AP"])
    assert result.values["AP_diff_low"] < result.values["AP_diff"] < result.values["AP_diff_high"]
    first = result.values["changed"][0]
    assert abs(first["here"] - first["there"]) == max(
        abs(row["here"] - row["there"]) for row in result.values["changed"]
    )
    text = "\n".join(result.lines)
    assert first["query_id"] in text
    for option in ("compare", "exact_matches"):
        with pytest.raises(Mismatch, match=rf"--{option.replace('_', '-')}: .*kind"):
            run_evaluate(root / "m", **{option: str(root / "index")})
        with pytest.raises(InputError, match=rf"--{option.replace('_', '-')}: .*not an output"):
            run_evaluate(root / "m", **{option: str(root / "nowhere")})


def test_comparison_of_equal_rankings(root):
    result = run_evaluate(
        root / "m", compare=str(root / "m"), exact_matches=None, all_measures=True
    )
    assert result.values["AP_diff_low"] == pytest.approx(-result.values["AP_diff_high"])
    assert 0.02 < result.values["AP_diff_high"] < 0.1
    assert not any(line.endswith("differs") for line in result.lines)
    bound = result.values["AP_diff_high"]
    assert any(
        line.endswith(f" AP +0.0000  [{-bound:+.4f}, {bound:+.4f}]") for line in result.lines
    )
    assert "-0.0000" not in result.as_text()


def test_perfect_success_has_a_wilson_interval(root, tmp_path):
    """All 15 queries are right; the Wilson interval is wider than a point."""
    pairs = [
        (q, image_name(ranking[0]), 1) for q, ranking in list(read_rows(root / "m").items())[:15]
    ]
    result = run_evaluate(root / "m", qrels=write_qrels(tmp_path / "qrels", pairs))
    assert result.values["Success@1"] == 1.0
    assert result.values["Success@1_low"] == pytest.approx(0.7961, abs=1e-4)
    assert result.lines[0].startswith(
        " Success@1  1.0000  [0.7961, 1.0000]  Share of queries whose"
    )
    assert result.values["AP_low"] == result.values["Success@1_low"]


def test_intervals_over_classes(root, tmp_path):
    """A labels file gives 14 classes of two queries; the original 7 classes are too few."""
    labels = write_labels(tmp_path / "l.csv", label=lambda r: r % 14)
    by_query = run_evaluate(root / "m", labels=labels).values
    by_class = run_evaluate(root / "m", labels=labels, intervals_over="classes")
    assert by_class.values["AP"] == by_query["AP"]
    assert by_class.values["AP_low"] not in (None, by_query["AP_low"])
    assert any(
        "are about further classes like these 14" in note for note in by_class.values["notes"]
    )
    too_few = run_evaluate(root / "m", intervals_over="classes", compare=str(root / "exact"))
    assert (too_few.values["AP_low"], too_few.values["AP_diff_low"]) == (None, None)
    assert "note: 7 classes are too few for an interval, which needs at least 10" in too_few.lines


def test_default_and_all_measures_are_printed(root):
    def printed(**options):
        lines = run_evaluate(root / "m", **options).lines
        (end,) = (
            position for position, line in enumerate(lines) if line.startswith(f"{QUERIES} queries")
        )
        return [line.split()[0] for line in lines[:end]]

    default_measures = ["Success@1", "Success@3", "Success@10", "P@10", "mAP@10", "AP"]
    assert printed() == default_measures
    assert printed(cutoffs="3") == [*default_measures[:3], "P@3", "mAP@3", "AP"]
    assert printed(all_measures=True) == [
        *default_measures[:4], "R@10", *default_measures[4:], "AP@10", "nDCG", "nDCG@10", "RR",
    ]  # fmt: skip
    assert f"{QUERIES} queries; in brackets: 95 % intervals; --all-measures prints 5 more" in (
        run_evaluate(root / "m").lines
    )


@pytest.mark.parametrize("spelling", ["map_cut_10", "AP@10"])
def test_fail_below_accepts_key_or_name(root, spelling):
    result = run_evaluate(root / "m", fail_below=f"{spelling}=1")
    assert result.exit_code == 5
    assert f"AP@10 {result.values['AP@10']:.4f} is below 1, the bound of --fail-below" in (
        result.lines
    )


def test_single_query_has_no_interval(root, tmp_path):
    exact, approximate = read_rows(root / "exact"), read_rows(root / "m")
    query, row = next((q, r) for q in exact for r in exact[q] if r not in approximate[q])
    qrels = write_qrels(tmp_path / "qrels", [(query, image_name(row), 1)])
    result = run_evaluate(root / "exact", qrels=qrels, compare=str(root / "m"))
    assert result.values["AP_diff"] > 0
    assert (result.values["queries"], result.values["AP_low"]) == (1, None)
    assert result.values["AP_diff_low"] is None
    assert "NaN" not in result.as_json()
    assert "nan" not in result.as_text()
    assert not any("[" in line for line in result.lines[:6])
    assert "note: 1 queries are too few for an interval, which needs at least 10" in result.lines
    assert not any(line.endswith("differs") for line in result.lines)


def test_measure_below_its_bound_is_exit_code_5(root):
    assert run_evaluate(root / "exact", fail_below="map=0.1, top1=0.1").exit_code == 0
    result = run_evaluate(root / "exact", fail_below="map=0.1,top1=1,p5=1", cutoffs="5")
    assert result.exit_code == 5
    assert [line for line in result.lines if "--fail-below" in line] == [
        f"{measure} {result.values[measure]:.4f} is below 1, the bound of --fail-below"
        for measure in ("Success@1", "P@5")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fail_below": "maps=0.6"},
            "--fail-below 'maps=0.6': write MEASURE=BOUND with one of top1",
        ),
        ({"fail_below": "map=60"}, "write a bound between 0 and 1"),
        ({"fail_below": "map"}, "write a bound between 0 and 1"),
        ({"fail_below": "map=nan"}, "write a bound between 0 and 1"),
        ({"fail_below": " , "}, "write MEASURE=BOUND, as map=0.6"),
        ({"cutoffs": "0"}, "--cutoffs '0': use ranks of 1 or more"),
        ({"cutoffs": "ten"}, "--cutoffs 'ten': use ranks of 1 or more"),
        ({"cutoffs": ""}, "--cutoffs '': use ranks of 1 or more"),
        ({"cutoffs": ",".join(map(str, range(1, 30)))}, "use at most 20"),
        ({"labels": "a.csv", "qrels": "b"}, "--labels and --qrels are mutually exclusive"),
        ({"per_query": "table.xlsx"}, "--per-query table.xlsx: specify a file that ends with"),
    ],
)
def test_invalid_options_are_refused(root, options, message):
    with pytest.raises(UsageError, match=message):
        run_evaluate(root / "m", **options)


@pytest.mark.parametrize("option", ["labels", "qrels"])
def test_missing_file_is_named(root, tmp_path, option):
    with pytest.raises(InputError, match=f"--{option} .*none.csv cannot be read"):
        run_evaluate(root / "m", **{option: str(tmp_path / "none.csv")})


def test_per_query_table_is_written(root, tmp_path):
    path = tmp_path / "queries.csv"
    values = run_evaluate(root / "m", per_query=str(path)).values
    lines = list(csv.DictReader(path.open()))
    assert len(lines) == QUERIES
    assert np.mean([float(line["map"]) for line in lines]) == pytest.approx(values["AP"])


def test_grades_of_unlabelled_images_are_unknown(root):
    from jobs.config.settings import RelevanceOptions
    from jobs.evaluation.ground_truth import open_ground_truth
    from retrieval.storage.finished_output import read_manifest
    from retrieval.storage.local import open_folder

    folder = open_folder(str(root / "m"))
    ground_truth = open_ground_truth(folder, read_manifest(folder), RelevanceOptions())
    table = pq.read_table(root / "m/matches").slice(0, 3)
    unlabelled = table.set_column(7, "label", pa.nulls(3, pa.string()))
    assert set(ground_truth.grades(table).tolist()) <= {0, 1}
    assert ground_truth.grades(unlabelled).tolist() == [UNKNOWN] * 3


# --- duplicate images in matches ---


@pytest.fixture(scope="module")
def duplicates(tmp_path_factory):
    """Write matches with duplicate images (top 5 of a gallery of 3), and valid ones."""
    root = tmp_path_factory.mktemp("doubled")
    queries, photos = ["/q/0.jpg", "/q/1.jpg"], [f"/g/{number}.jpg" for number in range(9)]
    write_matches(root / "doubled", queries, photos[:3], top_k=5)
    write_matches(root / "sound", queries, photos, top_k=5)
    write_matches(root / "unfinished", queries, photos[:3], top_k=5, finish=False)
    return root


def test_matches_with_duplicate_images_are_refused(duplicates, tmp_path):
    duplicate_path, valid_path = str(duplicates / "doubled"), str(duplicates / "sound")
    page_path = str(tmp_path / "p.html")
    calls = [
        lambda: run_evaluate(duplicate_path),
        lambda: run_evaluate(valid_path, compare=duplicate_path),
        lambda: report.start(ReportSettings(matches=duplicate_path, output=page_path)),
        lambda: report.start(
            ReportSettings(matches=duplicate_path, output=page_path, format="png")
        ),
        lambda: report.start(
            ReportSettings(
                matches=valid_path, output=page_path, format="png", compare=duplicate_path
            )
        ),
    ]
    for call in calls:
        with pytest.raises(Damaged, match=r"/doubled: the matches of \S+ hold \S+ more than once"):
            call()
    assert run_evaluate(valid_path).exit_code == 0


def test_verify_reports_duplicate_images_of_a_query(duplicates):
    for name in ("doubled", "unfinished"):
        result = verify.start(VerifySettings(path=str(duplicates / name)))
        assert (result.exit_code, result.values["state"]) == (7, "damaged")
        (problem,) = result.values["problems"]
        assert "part-00000.parquet: the matches of /q/0.jpg hold " in problem
    assert verify.start(VerifySettings(path=str(duplicates / "sound"))).exit_code == 0
