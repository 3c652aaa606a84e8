"""The command line: quick, honest about options, and the same in the docs."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jobs.cli import VERBS, command_line
from jobs.config import options, settings
from jobs.runtime.result import Result
from tests.commands import lookalike


def test_help_names_every_verb_and_every_exit_code():
    shown = lookalike("--help")
    assert shown.code == 0
    assert all(verb in shown.out for verb in VERBS)
    assert all(
        code in shown.out
        for code in ("2 usage", "6 does not", "8 stalled", "130 inter", "143 term")
    )


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_its_options(verb):
    shown = CliRunner().invoke(command_line(), [verb, "--help"])
    assert shown.exit_code == 0
    assert VERBS[verb].help in " ".join(shown.output.split())


def test_the_command_line_loads_no_heavy_library():
    code = (
        "import sys, jobs.cli; jobs.cli.command_line();"
        "heavy = ('torch', 'ray', 'faiss', 'pyarrow', 'numpy', 'matplotlib');"
        "print([m for m in heavy if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_underscores_mean_hyphens():
    parsed = _parse("rank", "--index", "i", "--queries", "q", "--output", "o", "--top_k", "7")
    assert parsed["top_k"] == 7


def test_sizes_and_recall_are_read_at_the_edge():
    parsed = _parse("index", "--embeddings", "e", "--output", "o", "--max-index-memory", "16G")
    assert parsed["max_index_memory"] == 16 << 30
    parsed = _parse("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "exact")
    assert parsed["recall"] == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ("index", "--embeddings", "e", "--output", "o", "--max-index-memory", "lots"),
        ("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "1.2"),
        ("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "0"),
        ("embed", "--input", "i", "--output", "o", "--pooling", "median"),
        ("embed", "--input", "i"),
        ("nonsense",),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(words):
    with pytest.raises(click.ClickException) as refused:
        command_line().main(list(words), standalone_mode=False)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 512 << 20), ("1.5G", 3 << 29), ("2k", 2048)]
)
def test_parse_size(text, size):
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.5", "0.0001K", "-1G", "G", "1.5.1M", "many"])
def test_what_is_less_than_a_byte_or_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size; write 512M or 16G"):
        options.parse_size(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_k": 0}, "--top-k 0: write at least 1"),
        ({"top_k": 10**7}, "--top-k 10000000: write at most 1048576"),
        ({"min_score": float("nan")}, "--min-score nan: write a number"),
        ({"max_error_rate": float("nan")}, "--max-error-rate nan: write a number"),
        ({"gpus_per_worker": 0.01}, "--gpus-per-worker 0.01: write at least 0.05"),
        ({"seed": 1 << 32}, "--seed 4294967296: write at most 4294967295"),
    ],
)
def test_values_out_of_range_name_the_option(given, said):
    with pytest.raises(options.UsageError, match=f"^{said}$"):
        options.validate_settings(
            settings.RankSettings(index="i", queries="q", output="o", **given)
        )


def test_every_option_is_used_and_marked():
    used = {
        field.metadata["option"].name
        for verb in VERBS.values()
        for field in verb.settings.__dataclass_fields__.values()
        if "option" in field.metadata
    }
    assert used == set(options.OPTIONS)


def test_content_leaves_out_how_it_runs():
    one = settings.EmbedSettings(input="i", output="a", workers=1)
    two = settings.EmbedSettings(input="i", output="b", workers=9, overwrite=True, json=True)
    assert settings.content_settings(one) == settings.content_settings(two)
    other = settings.EmbedSettings(input="i", output="a", chunk_rows=300)
    assert settings.content_settings(one) != settings.content_settings(other)


def test_a_result_is_one_json_object_on_one_line():
    text = Result({"a": 1, "b": "ü"}, ("line",)).as_json()
    assert "\n" not in text
    assert json.loads(text) == {"a": 1, "b": "ü"}


def _parse(verb, *words):
    command = command_line().get_command(click.Context(command_line()), verb)
    context = click.Context(command_line(), token_normalize_func=lambda t: t.replace("_", "-"))
    return command.make_context(verb, list(words), parent=context).params
