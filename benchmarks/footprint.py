"""What a server on a full-size checkpoint takes: memory, time to its first answer, room for a long text.

    python -m benchmarks.footprint [--folder DIR] [--repeat 3] [--out footprint]

Each engine serves in a process of its own over HTTP. Resident memory is VmRSS of that process, peaks are
VmHWM, both from /proc. Starts are repeated and files are in the page cache, as after a restart; beside
them stands what importing TensorFlow alone takes. Conversion to int8 is measured once, into an empty folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.encode_sides.workloads import KINDS, draw_spread, read_pool
from benchmarks.full import FULL, make_checkpoint, token_counter
from benchmarks.machine import write_result
from tests.server import running_server

GB = 1e9


def memory(pid: int, field: str) -> float:
    """VmRSS, RssAnon or VmHWM of a process, in GB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / GB
    raise AssertionError(f"no {field} in /proc/{pid}/status")


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def embed(client: httpx.Client, texts: Sequence[str], max_length: int) -> int:
    """All three outputs of some texts; the tokens that were seen."""
    answer = client.post(
        "/embed",
        headers={"X-Request-Timeout": "600"},
        json={
            "texts": list(texts),
            "outputs": ["dense", "sparse", "colbert"],
            "max_length": max_length,
            "encoding": "base64",
            "dtype": "float16",
        },
    )
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["tokens"])


def timed_command(arguments: Sequence[str]) -> float:
    """Seconds of a Python process."""
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.monotonic() - began


def measure_engine(
    engine: str, folder: Path, passages: Sequence[str], long: str, repeat: int
) -> dict[str, Any]:
    """Starts first, then the memory of the last server."""
    starts: list[float] = []
    found: dict[str, Any] = {}
    for number in range(repeat):
        with tempfile.TemporaryDirectory() as data:
            began = time.monotonic()
            settings = {"TRIVEC_CHECKPOINT": str(folder), "TRIVEC_ENGINE": engine}
            with running_server(Path(data), **settings) as (client, process):
                embed(client, ["a first question"], 512)
                starts.append(time.monotonic() - began)
                if number < repeat - 1:
                    continue
                found["resident_after_first_answer_gb"] = memory(process.pid, "VmRSS")
                for begin in range(0, len(passages), 8):
                    embed(client, passages[begin : begin + 8], 512)
                found["resident_after_passages_gb"] = before = memory(process.pid, "VmRSS")
                found["of_that_not_in_files_gb"] = memory(process.pid, "RssAnon")
                found["peak_so_far_gb"] = memory(process.pid, "VmHWM")
                forget_peak(process.pid)
                began = time.monotonic()
                found["long_text_tokens"] = embed(client, [long], 8192)
                found["long_text_s"] = time.monotonic() - began
                found["long_text_extra_gb"] = memory(process.pid, "VmHWM") - before
                found["resident_after_long_text_gb"] = memory(process.pid, "VmRSS")
    return {"first_answer_s": statistics.median(starts), "first_answers_s": starts, **found}


def measure_conversion(folder: Path) -> dict[str, Any]:
    """Time and peak memory of the process that converts."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        began, peak = time.monotonic(), 0.0
        process = subprocess.Popen(
            [sys.executable, "-m", "app.converting", str(folder), str(Path(work) / "made"), "0", "0"],
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            try:
                peak = max(peak, memory(process.pid, "VmHWM"))
            except (AssertionError, FileNotFoundError):  # it has just ended
                break
            time.sleep(0.05)
        assert process.wait() == 0
        took = time.monotonic() - began
        size = sum(file.stat().st_size for file in (Path(work) / "made").iterdir()) / GB
    return {"seconds": took, "peak_gb": peak, "folder_gb": size}


def rounded(value: Any) -> Any:
    """Figures with as many digits as they are worth."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 2) if isinstance(value, float) else value


def main() -> None:
    """Run it and write `results/NAME.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FULL)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["int8", "float32"])
    parser.add_argument("--repeat", type=int, default=3, help="starts of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    data = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared"))
    if not (data / "data" / "dev").is_dir():
        print(f"skipped: no texts in {data}/data/dev (set TRIVEC_TEST_DATA)")
        return
    if not (options.folder / "config.json").exists():
        make_checkpoint(options.folder, data, options.seed)
    passages, long = draw_texts(options.folder, data, options.seed)
    python, tensorflow = (
        statistics.median(timed_command(["-c", code]) for _ in range(options.repeat))
        for code in ("", "import tensorflow")
    )
    result: dict[str, Any] = {
        "benchmark": "a server on a full-size checkpoint; GB = 1e9 bytes",
        "passages": len(passages),
        "import_tensorflow_s": tensorflow - python,
        "conversion_to_int8": measure_conversion(options.folder),
    }
    for engine in options.engines:
        result[engine] = measure_engine(engine, options.folder, passages, long, options.repeat)
        print(engine, json.dumps(rounded(result[engine])), flush=True)
    print(json.dumps(rounded(result), indent=2))
    if options.out:
        print(write_result(options.out, rounded(result)))


def draw_texts(folder: Path, data: Path, seed: int) -> tuple[list[str], str]:
    """64 passages of 20 to 512 tokens, and one text cut at 8192 tokens."""
    lengths: Callable[[Sequence[str]], list[int]] = token_counter(folder)
    pool = read_pool(data, "passages")
    generator = np.random.default_rng(seed)
    passages = draw_spread(generator, pool, lengths(pool), 64, KINDS["passages"])
    long = " ".join(read_pool(data, "long")[:60])
    assert lengths([long])[0] > 8192
    return passages, long


if __name__ == "__main__":
    main()
