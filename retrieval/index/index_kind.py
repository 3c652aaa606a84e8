"""The kinds of FAISS index that an index may have, by their factory strings.

    IVFn,Flat       codes are the float32 vectors themselves
    IVFn,SQfp16     codes are the float16 vectors themselves; float32 vectors are rounded
    IVFn,SQ8        a byte a number
    IVFn,PQmx4fs    product quantization: m codes of 4 bits, in blocks for FAISS' fast scan

Vectors belong to the list of the closest of n trained centroids. Only the standard library is
imported here, so that the command line checks a string before it does any work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SUPPORTED_KINDS = (
    "IVFn,Flat or IVFn,SQfp16 (codes are the vectors themselves), or IVFn,SQ8 or IVFn,PQmx4fs "
    "(lossy codes propose candidates, which are scored by the vectors), with n lists and m parts "
    "of a vector"
)

_FACTORY = re.compile(r"IVF([1-9]\d{0,8}),(Flat|SQfp16|SQ8|PQ([1-9]\d{0,5})x4fs)", re.ASCII)

MIN_CODE_SAMPLE = 16
"""Vectors that 4-bit product quantization needs at least: one per code word."""


@dataclass(frozen=True)
class IndexKind:
    """A supported factory string, parsed."""

    factory: str
    nlist: int
    code_name: str  # Flat, SQfp16, SQ8 or PQmx4fs
    parts: int | None  # m of PQmx4fs

    def code_bytes(self, dimension: int) -> int:
        """Return the bytes of the code of one vector."""
        if self.parts is not None:
            return (self.parts + 1) // 2
        return dimension * {"Flat": 4, "SQfp16": 2, "SQ8": 1}[self.code_name]

    def lossless_dtype(self, dtype: str) -> str | None:
        """Return the dtype of codes that are the vectors of `dtype` themselves, None if lossy."""
        if self.code_name == "Flat":
            return "float32"
        return "float16" if (self.code_name, dtype) == ("SQfp16", "float16") else None


def parse_index_kind(factory: str) -> IndexKind:
    """Return the kind of a factory string; raise ValueError where it is not supported."""
    match = _FACTORY.fullmatch(factory)
    if match is None:
        raise ValueError(f"{factory!r} is not supported; specify {SUPPORTED_KINDS}")
    parts = int(match[3]) if match[3] else None
    return IndexKind(factory, int(match[1]), match[2], parts)
