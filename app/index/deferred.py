"""Kernels and FAISS, imported when something of them is first asked for.

Numba with LLVM takes 70 MB and FAISS 15 MB, of which a server that only embeds needs nothing. Any number of
threads may ask first: Python's import lock lets one of them import, and the others wait.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = [
    "code_kernels",
    "code_vectors",
    "compiled",
    "faiss_index",
    "kernels",
    "muvera_kernels",
    "pooling_kernels",
    "posting_build",
    "posting_kernels",
    "vector_kernels",
]


class Deferred:
    """Stands for a module of this package until one of its names is looked up, and hands them on then."""

    __slots__ = ("_module", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: ModuleType | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # somebody looks at what this is, not for a kernel
            raise AttributeError(name)
        if self._module is None:
            self._module = import_module(f"app.index.{self._name}")
        return getattr(self._module, name)


if TYPE_CHECKING:
    from app.index import (
        code_kernels,
        code_vectors,
        compiled,
        faiss_index,
        kernels,
        muvera_kernels,
        pooling_kernels,
        posting_build,
        posting_kernels,
        vector_kernels,
    )
else:
    code_kernels = Deferred("code_kernels")
    code_vectors = Deferred("code_vectors")
    compiled = Deferred("compiled")
    faiss_index = Deferred("faiss_index")
    kernels = Deferred("kernels")
    muvera_kernels = Deferred("muvera_kernels")
    pooling_kernels = Deferred("pooling_kernels")
    posting_build = Deferred("posting_build")
    posting_kernels = Deferred("posting_kernels")
    vector_kernels = Deferred("vector_kernels")
