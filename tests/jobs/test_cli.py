"""Test the parsing of the command line, option checks and help texts."""

import json
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jobs.cli import command_line
from jobs.config import options, settings
from jobs.config.verbs import VERBS
from jobs.runtime.result import Result
from tests.commands import run_command, run_command_in_process


def test_help_lists_all_verbs_and_exit_codes():
    result = run_command("--help")
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in VERBS)
    text = " ".join(result.stdout.split())
    assert all(
        code in text for code in ("2 usage", "6 made with", "8 stalled", "130 inter", "143 term")
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb):
    result = CliRunner().invoke(command_line(), [verb, "--help"])
    assert result.exit_code == 0
    assert VERBS[verb].help in " ".join(result.output.split())


def help_lines(verb, flag):
    result = CliRunner().invoke(command_line(), [verb, flag], terminal_width=100)
    assert result.exit_code == 0
    return result.output.splitlines()


def listed_flags(lines):
    """Return the options that start the rows of a help text."""
    words = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -")]
    return [word for word in words if word not in ("-h", "--help-all")]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_at_most_ten_options_on_one_line_each(verb):
    lines = help_lines(verb, "--help")
    flags = listed_flags(lines)
    assert flags == [options.OPTIONS[name].flag for name in VERBS[verb].usual]
    assert len(flags) <= 10
    assert max(map(len, lines)) <= 100
    continued = [line for line in lines if line.startswith("   ")]
    assert continued == []
    required = [
        field.name
        for field in VERBS[verb].settings.__dataclass_fields__.values()
        if "option" in field.metadata and field.metadata["option"].default is options.REQUIRED
    ]
    assert sorted(VERBS[verb].usual[: len(required)]) == sorted(required)


@pytest.mark.parametrize("verb", VERBS)
def test_complete_help_lists_every_option_once_by_subject(verb):
    lines = help_lines(verb, "--help-all")
    flags = [
        field.metadata["option"].flag
        for field in VERBS[verb].settings.__dataclass_fields__.values()
        if "option" in field.metadata
    ]
    assert sorted(listed_flags(lines)) == sorted(flags)
    assert any(f"{group}:" in lines for group in options.GROUPS)
    assert max(map(len, lines)) <= 100


def test_each_option_has_one_subject():
    names = [name for group in options.GROUPS.values() for name in group]
    assert sorted(names) == sorted(options.OPTIONS)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_valid_commands(verb):
    for example in VERBS[verb].examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("lookalike", verb)
        options.validate_settings(VERBS[verb].settings(**_parse(verb, *arguments)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("idnex", "there is no command idnex; did you mean index; lookalike --help lists"),
        ("rank --topk 3", "rank has no option --topk; did you mean --top-k; lookalike rank --help"),
        ("embed --gallery x", "embed has no option --gallery, which is an option of run, plan;"),
        ("index --metric cosin", "'cosin' is not known; did you mean cosine; write one of cosine,"),
        ("embed --input i", "Missing option '--output'; lookalike embed --help shows the options"),
        ("--json run", "--json before a command belongs to --version; lookalike --help"),
    ],
)
def test_mistyped_words_are_corrected_in_one_sentence(arguments, message):
    result = run_command_in_process(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.error
    assert len(result.stderr.splitlines()) == 1


def test_versions_are_printed():
    lines = run_command_in_process("--version").stdout.splitlines()
    assert lines[0].startswith("lookalike ")
    versions = run_command_in_process("--version", "--json").values
    assert dict(line.split(" ", 1) for line in lines) == versions
    assert {"Python", "torch", "torchvision", "ray", "faiss-cpu", "pyarrow", "numpy"} <= {*versions}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lookalike ra", {"plain,rank"}),
        ("lookalike rank --top", {"plain,--top-k"}),
        ("lookalike index --metric co", {"plain,cosine"}),
        ("lookalike verify re", {"file,re"}),
        ("lookalike embed --input ph", {"file,ph"}),
    ],
)
def test_completion_of_commands_options_values_and_paths(words, expected, monkeypatch):
    monkeypatch.setenv("_LOOKALIKE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert {*run_command_in_process().stdout.split()} == expected


@pytest.mark.parametrize(
    ("shell", "text"), [("bash", "complete -o"), ("zsh", "#compdef lookalike")]
)
def test_completion_script_is_printed(shell, text):
    result = run_command_in_process("--completion", shell)
    assert result.exit_code == 0
    assert text in result.stdout
    assert "_LOOKALIKE_COMPLETE" in result.stdout


def test_command_line_imports_no_heavy_library():
    code = (
        "import sys, jobs.cli; jobs.cli.command_line();"
        "heavy = ('torch', 'ray', 'faiss', 'pyarrow', 'numpy', 'numba', 'matplotlib');"
        "print([m for m in heavy if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


def test_underscores_in_options_are_accepted():
    parsed = _parse("rank", "--index", "i", "--queries", "q", "--output", "o", "--top_k", "7")
    assert parsed["top_k"] == 7


def test_sizes_and_recall_are_converted():
    parsed = _parse("index", "--embeddings", "e", "--output", "o", "--max-index-memory", "16G")
    assert parsed["max_index_memory"] == 16 << 30
    parsed = _parse("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "exact")
    assert parsed["recall"] == 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "--embeddings", "e", "--output", "o", "--max-index-memory", "lots"),
        ("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "1.2"),
        ("rank", "--index", "i", "--queries", "q", "--output", "o", "--recall", "0"),
        ("embed", "--input", "i", "--output", "o", "--pooling", "median"),
        ("embed", "--input", "i"),
        ("nonsense",),
    ],
)
def test_invalid_arguments_are_usage_errors(arguments):
    with pytest.raises(click.ClickException) as error:
        command_line().main(list(arguments), standalone_mode=False)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 512 << 20), ("1.5G", 3 << 29), ("2k", 2048)]
)
def test_parse_size(text, size):
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.5", "0.0001K", "-1G", "G", "1.5.1M", "many"])
def test_parse_size_of_invalid_text_is_refused(text):
    with pytest.raises(ValueError, match="is not a size; write 512M or 16G"):
        options.parse_size(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "--top-k 0: write at least 1"),
        ({"top_k": 10**7}, "--top-k 10000000: write at most 1048576"),
        ({"min_score": float("nan")}, "--min-score nan: write a number"),
        ({"max_error_rate": float("nan")}, "--max-error-rate nan: write a number"),
        ({"gpus_per_worker": 0.01}, "--gpus-per-worker 0.01: write at least 0.05"),
        ({"seed": 1 << 32}, "--seed 4294967296: write at most 4294967295"),
    ],
)
def test_out_of_range_value_names_the_option(changes, message):
    with pytest.raises(options.UsageError, match=f"^{message}$"):
        options.validate_settings(
            settings.RankSettings(index="i", queries="q", output="o", **changes)
        )


def test_all_options_are_used():
    used_options = {
        field.metadata["option"].name
        for verb in VERBS.values()
        for field in verb.settings.__dataclass_fields__.values()
        if "option" in field.metadata
    }
    assert used_options == set(options.OPTIONS)


def test_content_settings_exclude_run_options():
    settings_one_worker = settings.EmbedSettings(input="i", output="a", workers=1)
    settings_nine_workers = settings.EmbedSettings(
        input="i", output="b", workers=9, overwrite=True, json=True
    )
    assert settings.content_settings(settings_one_worker) == settings.content_settings(
        settings_nine_workers
    )
    settings_other_chunks = settings.EmbedSettings(input="i", output="a", chunk_rows=300)
    assert settings.content_settings(settings_one_worker) != settings.content_settings(
        settings_other_chunks
    )


def test_result_is_printed_as_json_on_one_line():
    text = Result({"a": 1, "b": "ü"}, ("line",)).as_json()
    assert "\n" not in text
    assert json.loads(text) == {"a": 1, "b": "ü"}


def _parse(verb, *arguments):
    command = command_line().get_command(click.Context(command_line()), verb)
    context = click.Context(command_line(), token_normalize_func=lambda t: t.replace("_", "-"))
    return command.make_context(verb, list(arguments), parent=context).params
