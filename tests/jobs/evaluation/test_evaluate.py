"""Test the `evaluate` command without Ray: ground truth options, measures, errors."""

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
from retrieval.index import plan
from tests.jobs.here import index_here, rank_here
from tests.matches import put_matches
from tests.stores import write_store

ROWS, QUERIES, CLASSES = 210, 28, 7  # of images a00000.jpg …; the class is row % 7


def drawn(rows, seed, noise):
    generator = np.random.default_rng(seed)
    centres = np.eye(CLASSES, 12)[np.arange(rows) % CLASSES]
    return (centres + noise * generator.normal(size=(rows, 12))).astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A gallery in classes that overlap, an index that reads few lists, and a ranking."""
    root = tmp_path_factory.mktemp("evaluate")
    write_store(root / "gallery", drawn(ROWS, 0, 0.5), sha256=[f"g{n}" for n in range(ROWS)])
    write_store(root / "queries", drawn(QUERIES, 1, 0.5), sha256=[f"q{n}" for n in range(QUERIES)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        index_here(root / "gallery", root / "index", index_factory="IVF16,SQfp16")
        rank(root, "m", nprobe=2, format="trec")
        rank(root, "exact", recall=1.0)
    return root


def rank(root, name, queries="queries", **options):
    asked = {"top_k": 25, **options}
    return rank_here(root / "index", root / queries, root / name, **asked)


def evaluated(path, **options):
    return start(EvaluateSettings(matches=str(path), **options))


def rows_of(path):
    table = pq.read_table(path / "matches")
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["query_id"], []).append(int(row["image_id"][1:6]))
    return found


def name(row):
    return f"a{row:05d}.jpg"


def average_precision(order, relevant):
    hits = [place for place, row in enumerate(order) if row in relevant]
    return sum((n + 1) / (place + 1) for n, place in enumerate(hits)) / len(relevant)


# --- what it is worth ---------------------------------------------------------------------------


def test_measures_are_those_of_a_plain_loop(root):
    values = evaluated(root / "m").values
    found = rows_of(root / "m")
    same = {q: {r for r in range(ROWS) if r % 7 == int(q[1:6]) % 7} for q in found}
    expected = [average_precision(order, same[q]) for q, order in found.items()]
    assert values["AP"] == pytest.approx(np.mean(expected))
    assert values["Success@1"] == np.mean([found[q][0] in same[q] for q in found])
    assert values["R@10"] == pytest.approx(
        np.mean([len(same[q] & set(found[q][:10])) / len(same[q]) for q in found])
    )
    within = [
        average_precision(order[:10], same[q]) * len(same[q]) / min(10, len(same[q]))
        for q, order in found.items()
    ]
    assert values["mAP@10"] == pytest.approx(np.mean(within))
    assert values["AP_low"] < values["AP"] < values["AP_high"]
    assert (values["queries"], values["left_out"]) == (QUERIES, 0)
    assert sorted(one["label"] for one in values["classes"]) == [f"class{n}" for n in range(7)]
    json.dumps(values, allow_nan=False)


def test_measures_are_those_of_trec_eval_on_the_file_for_it(root):
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    run = list(ir_measures.read_trec_run(str(root / "m/matches.trec")))
    qrels = [
        ir_measures.Qrel(name(q), name(r), 1)
        for q in range(QUERIES)
        for r in range(ROWS)
        if q % 7 == r % 7
    ]
    theirs = ir_measures.calc_aggregate(
        [
            ir_measures.parse_measure(m)
            for m in ("AP", "AP@10", "nDCG", "nDCG@10", "RR", "R@10", "P@10", "Success@3")
        ],
        qrels,
        run,
    )
    values = evaluated(root / "m").values
    ours = {str(key): values[str(key)] for key in theirs}
    assert ours == pytest.approx({str(key): value for key, value in theirs.items()})


def test_a_query_is_not_missed_among_what_its_own_ranking_leaves_out(root):
    """A gallery in perfect classes against itself, each image left out of its own matches."""
    write_store(root / "clear", drawn(70, 2, 0.01))
    index_here(root / "clear", root / "clear-index")
    rank_here(root / "clear-index", root / "clear", root / "self", top_k=9, exclude_self=True)
    values = evaluated(root / "self").values
    assert (values["AP"], values["nDCG"], values["R@10"]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("labels", [False, True])
def test_what_a_filter_leaves_out_is_not_missed(root, tmp_path, labels):
    """Width is the row % 5: of 30 images of a class 6 pass."""
    if not (root / "filtered").exists():
        rank(root, "filtered", filter="width = 2", recall=1.0, exclude_self=True, top_k=42)
    options = {"labels": write_labels(tmp_path / "l.csv")} if labels else {}
    file = tmp_path / "q.parquet"
    evaluated(root / "filtered", per_query=str(file), **options)
    table = pq.read_table(file)
    assert table["relevant"].unique().to_pylist() == [ROWS // 7 // 5]
    assert table["recall10"].to_numpy().max() <= 1


def test_queries_that_find_nothing_count_against(root):
    manifest = rank(root, "near", min_score=0.75, recall=1.0)
    unmatched = manifest.counts["unmatched"]
    assert 0 < unmatched < QUERIES
    (ledger,) = (root / "near/failures").iterdir()
    lines = pq.read_table(ledger).to_pylist()
    found = rows_of(root / "near")
    assert {line["image_id"] for line in lines} == {name(q) for q in range(QUERIES)} - set(found)
    assert {(line["stage"], line["error"]) for line in lines} == {("rank", "NoMatch")}
    result = evaluated(root / "near")
    assert result.values["queries"] == QUERIES
    right = sum(int(q[1:6]) % 7 == order[0] % 7 for q, order in found.items())
    assert result.values["Success@1"] == right / QUERIES
    assert f"note: {unmatched} queries without an answer count as wrong" in result.lines


def test_a_cut_by_top_k_is_said(root):
    lines = evaluated(root / "m").lines
    assert "note: with --top-k 25 and 30 relevant images a query on average, mAP can be 0.833 at " \
        "most" in lines  # fmt: skip


# --- labels of a file ---------------------------------------------------------------------------


def write_labels(path, gallery=range(ROWS), queries=range(QUERIES), label=lambda row: row % 7):
    lines = [f"gallery,{name(r)},{label(r)}" for r in gallery]
    lines += [f"queries,{name(q)},{label(q)}" for q in queries]
    path.write_text("split,image_id,label\n" + "\n".join(lines) + "\n")
    return str(path)


def test_labels_of_a_file_may_be_others_and_more(root, tmp_path):
    """Two classes instead of seven, and images that no gallery has."""
    labels = write_labels(tmp_path / "l.csv", gallery=range(ROWS + 50), label=lambda r: r % 2)
    values = evaluated(root / "m", labels=labels).values
    same = {q: {r for r in range(ROWS) if r % 2 == int(q[1:6]) % 2} for q in rows_of(root / "m")}
    found = [average_precision(order, same[q]) for q, order in rows_of(root / "m").items()]
    assert values["AP"] == pytest.approx(np.mean(found))


def test_half_a_labels_file_is_said(root, tmp_path):
    labels = write_labels(tmp_path / "l.csv", gallery=range(100), queries=range(8))
    result = evaluated(root / "m", labels=labels)
    assert (result.values["queries"], result.values["left_out"]) == (8, QUERIES - 8)
    assert f"note: {QUERIES - 8} queries without label are left out" in result.lines
    assert f"note: {ROWS - 100} gallery images without label count as wrong" in result.lines


def test_classes_that_the_gallery_lacks_are_said(root, tmp_path):
    labels = write_labels(tmp_path / "l.csv", gallery=range(0, ROWS, 7))
    result = evaluated(root / "m", labels=labels)
    assert any(
        line.startswith("note: 24 queries are of classes that no gallery image has (1, 2, 3 and 3 ")
        for line in result.lines
    )


@pytest.mark.parametrize(
    ("options", "said"),
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
def test_labels_of_something_else_are_refused(root, tmp_path, options, said):
    labels = write_labels(tmp_path / "l.csv", **options)
    with pytest.raises(InputError, match=said):
        evaluated(root / "m", labels=labels)


def test_without_its_index_a_labels_file_is_believed(root, tmp_path):
    import shutil

    shutil.copytree(root / "m", tmp_path / "m")
    labels = write_labels(tmp_path / "l.csv")
    before = evaluated(tmp_path / "m", labels=labels).values
    (root / "index").rename(root / "gone")
    try:
        after = evaluated(tmp_path / "m", labels=labels).values
        own = evaluated(tmp_path / "m").values
    finally:
        (root / "gone").rename(root / "index")
    assert before["AP"] == after["AP"] == own["AP"]


# --- qrels --------------------------------------------------------------------------------------


def write_qrels(path, pairs):
    path.write_text("".join(f"{q} 0 {x} {grade}\n" for q, x, grade in pairs))
    return str(path)


def test_qrels_that_say_what_labels_say_give_the_same(root, tmp_path):
    pairs = [(name(q), name(r), 1) for q in range(QUERIES) for r in range(q % 7, ROWS, 7)]
    qrels = write_qrels(tmp_path / "qrels", pairs)
    by_labels, by_qrels = evaluated(root / "m").values, evaluated(root / "m", qrels=qrels).values
    for key in ("AP", "AP_low", "nDCG", "Success@3", "R@10", "RR", "thresholds", "classes"):
        assert by_labels[key] == by_qrels[key]


def test_junk_is_passed_over_and_counted(root, tmp_path):
    order = rows_of(root / "m")[name(0)]
    pairs = [(name(0), name(order[0]), 7), (name(0), name(order[1]), 1)]
    qrels = write_qrels(tmp_path / "qrels", pairs)
    result = evaluated(root / "m", qrels=qrels, junk_grade=7)
    assert (result.values["Success@1"], result.values["queries"]) == (1, 1)
    assert "note: 1 matches were ignored as junk" in result.lines
    assert f"note: {QUERIES - 1} queries without a relevant image in --qrels are left out" in (
        result.lines
    )


def test_queries_that_only_qrels_know_count_against(root, tmp_path):
    order = rows_of(root / "m")[name(0)]
    pairs = [(name(0), name(order[0]), 1), ("never-asked.jpg", name(1), 1)]
    result = evaluated(root / "m", qrels=write_qrels(tmp_path / "qrels", pairs))
    assert (result.values["Success@1"], result.values["queries"]) == (1 / 2, 2)
    assert "note: 1 queries without an answer count as wrong" in result.lines


def test_qrels_of_another_run_are_refused(root, tmp_path):
    qrels = write_qrels(tmp_path / "qrels", [("other.jpg", name(1), 1)])
    with pytest.raises(
        Mismatch, match=r"contains none of the queries of .*'other.jpg', theirs 'a000"
    ):
        evaluated(root / "m", qrels=qrels)


def test_qrels_of_another_gallery_are_said(root, tmp_path):
    qrels = write_qrels(tmp_path / "qrels", [(name(0), "other.jpg", 1)])
    result = evaluated(root / "m", qrels=qrels)
    assert result.values["AP"] == 0
    assert any("check that it is for this gallery" in line for line in result.lines)


# --- compared, split, bounded -------------------------------------------------------------------


def test_what_is_lost_is_split_between_backbone_and_index(root):
    exact, found = (
        evaluated(root / "exact").values,
        evaluated(root / "m", exact_matches=str(root / "exact")),
    )
    assert found.values["AP_lost_by_backbone"] == pytest.approx(1 - exact["AP"])
    assert found.values["AP_lost_by_index"] == pytest.approx(exact["AP"] - found.values["AP"])
    # lists gather vectors of one class here, so what reads few of them may even gain
    assert abs(found.values["AP_lost_by_index"]) > 0.01
    assert any(line.startswith("  AP: ") and "by the index" in line for line in found.lines)
    with pytest.raises(Mismatch, match="is not exact; rank again with --recall exact"):
        evaluated(root / "exact", exact_matches=str(root / "m"))
    rank(root, "more", recall=1.0, top_k=26)
    with pytest.raises(Mismatch, match=r"differs from .* in top_k; rank the same"):
        evaluated(root / "m", exact_matches=str(root / "more"))


def test_rankings_are_compared_by_query(root):
    found = evaluated(root / "exact", compare=str(root / "m"))
    own, other = evaluated(root / "exact").values, evaluated(root / "m").values
    assert found.values["compared"] == QUERIES
    assert found.values["AP_diff"] == pytest.approx(own["AP"] - other["AP"])
    assert found.values["AP_diff_low"] < found.values["AP_diff"] < found.values["AP_diff_high"]
    first = found.values["changed"][0]
    assert abs(first["here"] - first["there"]) == max(
        abs(one["here"] - one["there"]) for one in found.values["changed"]
    )
    text = "\n".join(found.lines)
    assert first["query_id"] in text
    for option in ("compare", "exact_matches"):
        with pytest.raises(Mismatch, match=rf"--{option}: .*kind"):
            evaluated(root / "m", **{option: str(root / "index")})
        with pytest.raises(InputError, match=rf"--{option}: .*not an output"):
            evaluated(root / "m", **{option: str(root / "nowhere")})


def test_of_equal_rankings_nothing_is_certain_and_no_zero_has_a_sign(root):
    found = evaluated(root / "m", compare=str(root / "m"), exact_matches=None, all_measures=True)
    assert found.values["AP_diff_low"] == pytest.approx(-found.values["AP_diff_high"])
    assert 0.02 < found.values["AP_diff_high"] < 0.1
    assert not any(line.endswith("differs") for line in found.lines)
    ends = found.values["AP_diff_high"]
    assert any(line.endswith(f" AP +0.0000  [{-ends:+.4f}, {ends:+.4f}]") for line in found.lines)
    assert "-0.0000" not in found.as_text()


def test_all_right_is_not_certain(root, tmp_path):
    """15 queries, each with its first match as the only relevant image: Wilson, not a point."""
    pairs = [(q, name(order[0]), 1) for q, order in list(rows_of(root / "m").items())[:15]]
    found = evaluated(root / "m", qrels=write_qrels(tmp_path / "qrels", pairs))
    assert found.values["Success@1"] == 1.0
    assert found.values["Success@1_low"] == pytest.approx(0.7961, abs=1e-4)
    assert found.lines[0].startswith(" Success@1  1.0000  [0.7961, 1.0000]  Share of queries whose")
    assert found.values["AP_low"] == found.values["Success@1_low"]


def test_intervals_may_speak_of_classes(root, tmp_path):
    """28 queries in 14 classes of two, made by a labels file; of the seven there are too few."""
    labels = write_labels(tmp_path / "l.csv", label=lambda r: r % 14)
    by_query = evaluated(root / "m", labels=labels).values
    by_class = evaluated(root / "m", labels=labels, intervals_over="classes")
    assert by_class.values["AP"] == by_query["AP"]
    assert by_class.values["AP_low"] not in (None, by_query["AP_low"])
    assert any(
        "are about further classes like these 14" in note for note in by_class.values["notes"]
    )
    few = evaluated(root / "m", intervals_over="classes", compare=str(root / "exact"))
    assert (few.values["AP_low"], few.values["AP_diff_low"]) == (None, None)
    assert "note: 7 classes are too few for an interval, which needs at least 10" in few.lines


def test_six_measures_are_printed_and_all_if_asked_for(root):
    def printed(**options):
        lines = evaluated(root / "m", **options).lines
        (end,) = (
            place for place, line in enumerate(lines) if line.startswith(f"{QUERIES} queries")
        )
        return [line.split()[0] for line in lines[:end]]

    six = ["Success@1", "Success@3", "Success@10", "P@10", "mAP@10", "AP"]
    assert printed() == six
    assert printed(cutoffs="3") == [*six[:3], "P@3", "mAP@3", "AP"]
    assert printed(all_measures=True) == [
        *six[:4], "R@10", *six[4:], "AP@10", "nDCG", "nDCG@10", "RR",
    ]  # fmt: skip
    assert f"{QUERIES} queries; in brackets: 95 % intervals; --all-measures prints 5 more" in (
        evaluated(root / "m").lines
    )


@pytest.mark.parametrize("spelling", ["map_cut_10", "AP@10"])
def test_a_bound_takes_key_or_name(root, spelling):
    found = evaluated(root / "m", fail_below=f"{spelling}=1")
    assert found.exit_code == 5
    assert f"AP@10 {found.values['AP@10']:.4f} is below 1, which --fail-below asks for" in (
        found.lines
    )


def test_one_query_has_no_interval_and_tells_no_rankings_apart(root, tmp_path):
    exact, other = rows_of(root / "exact"), rows_of(root / "m")
    query, row = next((q, r) for q in exact for r in exact[q] if r not in other[q])
    qrels = write_qrels(tmp_path / "qrels", [(query, name(row), 1)])
    found = evaluated(root / "exact", qrels=qrels, compare=str(root / "m"))
    assert found.values["AP_diff"] > 0
    assert (found.values["queries"], found.values["AP_low"]) == (1, None)
    assert found.values["AP_diff_low"] is None
    assert "NaN" not in found.as_json()
    assert "nan" not in found.as_text()
    assert not any("[" in line for line in found.lines[:6])
    assert "note: 1 queries are too few for an interval, which needs at least 10" in found.lines
    assert not any(line.endswith("differs") for line in found.lines)


def test_below_a_bound_it_ends_with_5(root):
    assert evaluated(root / "exact", fail_below="map=0.1, top1=0.1").exit_code == 0
    found = evaluated(root / "exact", fail_below="map=0.1,top1=1,p5=1", cutoffs="5")
    assert found.exit_code == 5
    assert [line for line in found.lines if "--fail-below" in line] == [
        f"{name} {found.values[name]:.4f} is below 1, which --fail-below asks for"
        for name in ("Success@1", "P@5")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
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
        ({"cutoffs": ",".join(map(str, range(1, 30)))}, "name at most 20"),
        ({"labels": "a.csv", "qrels": "b"}, "--labels and --qrels: .* name one"),
        ({"per_query": "table.xlsx"}, "--per-query table.xlsx: name a file that ends with"),
    ],
)
def test_options_that_say_nothing_are_refused(root, options, said):
    with pytest.raises(UsageError, match=said):
        evaluated(root / "m", **options)


@pytest.mark.parametrize("option", ["labels", "qrels"])
def test_a_file_that_is_not_there_is_named(root, tmp_path, option):
    with pytest.raises(InputError, match=f"--{option} .*none.csv cannot be read"):
        evaluated(root / "m", **{option: str(tmp_path / "none.csv")})


def test_a_line_a_query_can_be_written(root, tmp_path):
    path = tmp_path / "queries.csv"
    values = evaluated(root / "m", per_query=str(path)).values
    lines = list(csv.DictReader(path.open()))
    assert len(lines) == QUERIES
    assert np.mean([float(line["map"]) for line in lines]) == pytest.approx(values["AP"])


def test_images_without_label_are_unknown_to_whoever_draws_them(root):
    from jobs.config.settings import RelevanceOptions
    from jobs.evaluation.ground_truth import open_ground_truth
    from retrieval.storage.finished_output import read_manifest
    from retrieval.storage.local import open_folder

    folder = open_folder(str(root / "m"))
    ground_truth = open_ground_truth(folder, read_manifest(folder), RelevanceOptions())
    table = pq.read_table(root / "m/matches").slice(0, 3)
    blank = table.set_column(7, "label", pa.nulls(3, pa.string()))
    assert set(ground_truth.grades(table).tolist()) <= {0, 1}
    assert ground_truth.grades(blank).tolist() == [UNKNOWN] * 3


# --- an image that a query has twice ---


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """Matches of five images each, of a gallery of three; and sound ones of the same queries."""
    root = tmp_path_factory.mktemp("doubled")
    queries, photos = ["/q/0.jpg", "/q/1.jpg"], [f"/g/{number}.jpg" for number in range(9)]
    put_matches(root / "doubled", queries, photos[:3], top_k=5)
    put_matches(root / "sound", queries, photos, top_k=5)
    put_matches(root / "unfinished", queries, photos[:3], top_k=5, finish=False)
    return root


def test_matches_that_hold_an_image_twice_are_refused_by_whatever_reads_them(doubled, tmp_path):
    bad, sound, page = str(doubled / "doubled"), str(doubled / "sound"), str(tmp_path / "p.html")
    refusals = [
        lambda: evaluated(bad),
        lambda: evaluated(sound, compare=bad),
        lambda: report.start(ReportSettings(matches=bad, output=page)),
        lambda: report.start(ReportSettings(matches=bad, output=page, format="png")),
        lambda: report.start(ReportSettings(matches=sound, output=page, format="png", compare=bad)),
    ]
    for refuse in refusals:
        with pytest.raises(Damaged, match=r"/doubled: the matches of \S+ hold \S+ more than once"):
            refuse()
    assert evaluated(sound).exit_code == 0


def test_verify_reports_an_image_that_a_query_has_twice(doubled):
    for name in ("doubled", "unfinished"):
        result = verify.start(VerifySettings(path=str(doubled / name)))
        assert (result.exit_code, result.values["state"]) == (7, "damaged")
        (problem,) = result.values["problems"]
        assert "part-00000.parquet: the matches of /q/0.jpg hold " in problem
    assert verify.start(VerifySettings(path=str(doubled / "sound"))).exit_code == 0
