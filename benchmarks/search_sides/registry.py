"""Every side of `benchmarks.search`: its script, its interpreter, and up to which size it is asked at all.

Nothing heavy is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.encode_sides.registry import ROOT
from benchmarks.search_sides.protocol import Group, Mode

BASE = "trivec"


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """`imports`: what its interpreter must have. `most_documents`: beyond, it needs too long or too much."""

    module: str
    what: str
    groups: tuple[Group, ...]
    imports: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    most_documents: int | None = None
    own_interpreter: bool = False
    order: Mode | None = None
    """By which score it orders the hits of a hybrid search, where that is not the weighted mean of three."""

    @property
    def python(self) -> Path:
        """The interpreter that runs it: this one, or TRIVEC_SEARCH_PYTHON."""
        if self.own_interpreter:
            return Path(sys.executable)
        return Path(os.environ.get("TRIVEC_SEARCH_PYTHON", str(ROOT / ".venv-search/bin/python")))

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if not self.python.exists():
            return (
                f"not installed: no interpreter at {self.python}: make a virtual environment from "
                "constraints-search.txt, or set TRIVEC_SEARCH_PYTHON"
            )
        if self.own_interpreter:
            absent = [name for name in self.imports if importlib.util.find_spec(name) is None]
        else:
            code = (
                "import sys, importlib.util as u; "
                "print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))"
            )
            command = [str(self.python), "-c", code, *self.imports]
            absent = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return f"not installed: {', '.join(absent)}" if absent else None


SIDES: Mapping[str, SearchSpec] = {
    BASE: SearchSpec(
        "trivec_side", "Trivec's index, in process", ("lexical", "dense", "all"), own_interpreter=True
    ),
    "scipy": SearchSpec("scipy_side", "SciPy CSR: X @ q, argpartition", ("lexical",), ("scipy",)),
    "bm25s": SearchSpec(
        "bm25s_side",
        "bm25s, Numba scorer, the documents' M3 weights as its score matrix, query terms unweighted",
        ("lexical",),
        ("bm25s", "numba", "scipy"),
    ),
    "seismic": SearchSpec(
        "seismic_side",
        "Seismic, approximate: its default build, query_cut 12, heap_factor 0.8",
        ("lexical",),
        ("seismic",),
    ),
    "faiss-flat": SearchSpec(
        "faiss_side", "FAISS IndexFlatIP, exact", ("dense",), ("faiss",), {"index": "flat"}
    ),
    "faiss-hnsw": SearchSpec(
        "faiss_side",
        "FAISS IndexHNSWFlat, M 32, efConstruction 128, efSearch 128",
        ("dense",),
        ("faiss",),
        {"index": "hnsw"},
    ),
    "numpy": SearchSpec(
        "numpy_side",
        "NumPy MaxSim of the candidates that it is given, float32 rows in memory",
        ("all",),
        most_documents=10_000,
    ),
    "qdrant": SearchSpec(
        "qdrant_side",
        "qdrant-client local mode in memory: dense and sparse prefetch of 100, ColBERT MaxSim orders them",
        ("all",),
        ("qdrant_client",),
        most_documents=5_000,
        order="colbert",
    ),
    "lancedb": SearchSpec(
        "lancedb_side",
        "LanceDB on disk: vector and full text fused by RRF, MaxSim of the best 100 in NumPy",
        ("all",),
        ("lancedb",),
        most_documents=20_000,
        order="colbert",
    ),
    "milvus-lite": SearchSpec(
        "milvus_side",
        "Milvus Lite: hybrid_search of dense and sparse with WeightedRanker",
        ("all",),
        ("pymilvus", "milvus_lite"),
        most_documents=100_000,
    ),
}
