"""The result of a command, with access to the outputs that it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from retrieval.core.errors import UsageError

if TYPE_CHECKING:
    from lookalike.index_reader import Index
    from lookalike.input_types import Backbone
    from lookalike.match_reader import Matches
    from lookalike.store_reader import Store

_MATCHES = {"run": "matches", "demo": "result/matches", "rank": ""}
_INDEXES = {"run": "index", "demo": "result/index", "index": ""}
_STORES = {
    "run": {"gallery": "gallery", "queries": "queries"},
    "demo": {"gallery": "result/gallery", "queries": "result/queries"},
    "embed": {"gallery": "", "queries": ""},
}
"""Paths of the outputs of each verb, below the one that `output` names."""


class Result(Mapping[str, Any]):
    """Result of a command.

    The values that the command line prints with `--json` are the items of this mapping, and its
    attributes: `result["recall"]` is `result.recall`. As a path it is its output, so that it can be
    passed to another command.

    Attributes:
        verb: Name of the command.
        lines: Lines that the command line prints.
        exit_code: Exit code of the command line: 0, unless it is the `result` of an exception.
    """

    def __init__(
        self, verb: str, values: Mapping[str, Any], lines: tuple[str, ...], exit_code: int = 0
    ) -> None:
        self.verb, self.lines, self.exit_code = verb, lines, exit_code
        self._values = dict(values)

    @property
    def text(self) -> str:
        """Return the lines as one string."""
        from jobs.runtime.progress import visible

        return visible("\n".join(self.lines))

    def matches(self) -> Matches:
        """Open the matches of `run`, `rank` or `demo`; raise UsageError for other commands."""
        from lookalike.match_reader import open_matches

        return open_matches(self._child(_MATCHES, "matches"))

    def index(self, *, backbone: Backbone | None = None, python_path: str | None = None) -> Index:
        """Open the index of `run`, `index` or `demo`; raise UsageError for other commands.

        The arguments are those of `open_index`, for a model of your own.
        """
        from lookalike.index_reader import open_index

        path = self._child(_INDEXES, "index")
        return open_index(path, backbone=backbone, python_path=python_path)

    def store(self, side: str = "gallery") -> Store:
        """Open the store of `embed`, or that of a `side` of `run` or `demo`: gallery or queries.

        Raises UsageError for other commands.
        """
        from lookalike.store_reader import open_store

        stores = {verb: sides[side] for verb, sides in _STORES.items() if side in sides}
        return open_store(self._child(stores, f"store of a {side}"))

    def _child(self, places: Mapping[str, str], content: str) -> str:
        if self.verb not in places:
            raise UsageError(f"the result of {self.verb} has no {content}")
        return "/".join(filter(None, (self.__fspath__(), places[self.verb])))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"the result of {self.verb} has no value {name}")
        return self._values[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *filter(str.isidentifier, self._values)]

    def __fspath__(self) -> str:
        if not isinstance(output := self._values.get("output"), str):
            raise TypeError(f"the result of {self.verb} is not an output folder")
        return output

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from lookalike.html_view import preformatted

        shown = preformatted(self.text)
        if self.verb in _MATCHES:
            shown += self.matches()._repr_html_()
        return shown
