"""The command line, `trivec COMMAND`: serve, embed, index, search, mcp, export, backup and others.

Settings of the environment are options here, under the same names. It prints results to standard
output, everything else to standard error; the exit status is 0, 1 for a fault, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pydantic

from app import commands
from app.commands import UsageError
from app.golden import GoldenError
from app.index.errors import IndexFault
from app.jsonl import InputError, document_line, read_lines
from app.settings import Settings, unknown_variables
from weights.checkpoint import CheckpointError

MODEL_KNOBS = ("checkpoint", "revision", "engine", "dense_only", "cache_dir", "converted_dir", "threads")
# Documents of one request of `trivec index`: enough to fill forward passes, few enough for the bar to move.
INDEX_BATCH = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    for name in unknown_variables():
        print(f"trivec: warning: {name} is set but names no setting", file=sys.stderr)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except UsageError as error:
        print(f"trivec: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, GoldenError, IndexFault, InputError, ValueError, OSError) as error:
        print(f"trivec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trivec", description=__doc__.splitlines()[0] if __doc__ else None)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = subcommands.add_parser("serve", help="start the HTTP server")
    _add_settings(serve, Settings.model_fields)
    serve.set_defaults(run=_serve)

    embed = subcommands.add_parser("embed", help="embed the texts of a JSONL file into a safetensors file")
    embed.add_argument(
        "input", metavar="IN.jsonl", help="one object with a `text` a line; - is standard input"
    )
    embed.add_argument("-o", "--output", metavar="OUT.safetensors", required=True)
    embed.add_argument("--kind", choices=("query", "passage"), default="passage")
    embed.add_argument("--outputs", default=None, help="comma-separated: dense,sparse,colbert (all)")
    embed.add_argument("--max-length", type=int, default=None, help="tokens kept of a text")
    embed.add_argument("--no-truncate", action="store_true", help="a text that is too long is an error")
    embed.add_argument("--no-normalize", action="store_true", help="leave vectors at their own length")
    embed.add_argument("--batch-tokens", type=int, default=None, help="tokens of one forward pass")
    embed.add_argument("--no-progress", action="store_true")
    embed.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    _add_settings(embed, MODEL_KNOBS)
    embed.set_defaults(run=_with_settings(commands.embed))

    index = subcommands.add_parser("index", help="put the documents of a JSONL file into a collection")
    index.add_argument("input", metavar="IN.jsonl", help="objects with `text`, `id`, `title`, `metadata`")
    _add_collection(index)
    index.add_argument("--no-progress", action="store_true")
    index.set_defaults(run=lambda options: asyncio.run(_index(options)))

    search = subcommands.add_parser("search", help="search a collection")
    search.add_argument("query", metavar="TEXT")
    search.add_argument("-k", "--top-k", type=int, default=10)
    search.add_argument("--mode", choices=("hybrid", "dense", "sparse", "colbert", "bm25"), default="hybrid")
    search.add_argument("--filter", metavar="JSON", default=None, help='e.g. \'{"lang": "en"}\'')
    search.add_argument("--explain", action="store_true", help="with --json: where each score comes from")
    _add_collection(search)
    search.set_defaults(run=lambda options: asyncio.run(_search(options)))

    selftest = subcommands.add_parser("selftest", help="compare this machine's outputs with the reference's")
    selftest.add_argument("--published", action="store_true", help="these are the weights of BAAI/bge-m3")
    selftest.add_argument("--json", action="store_true")
    _add_settings(selftest, MODEL_KNOBS)
    selftest.set_defaults(run=_with_settings(commands.selftest))

    download = subcommands.add_parser("download", help="fetch a checkpoint from the hub and print its folder")
    _add_settings(download, ("checkpoint", "revision", "cache_dir"))
    download.add_argument("--no-progress", action="store_true")
    download.set_defaults(run=_with_settings(commands.download))

    export = subcommands.add_parser("export", help="convert a checkpoint for the int8 engine")
    export.add_argument("--format", choices=("litert",), default="litert", help="the only one so far")
    export.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        default=None,
        help="a new folder that serves without the checkpoint; else the cache of converted checkpoints",
    )
    _add_settings(export, ("checkpoint", "revision", "dense_only", "cache_dir", "converted_dir"))
    export.set_defaults(run=_with_settings(commands.export))

    backup = subcommands.add_parser("backup", help="copy a data folder to a file, while it is served")
    backup.add_argument("-o", "--output", metavar="FILE", required=True, help="a file that is not there yet")
    backup.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    _add_settings(backup, ("data_dir",))
    backup.set_defaults(run=_with_settings(commands.backup))

    restore = subcommands.add_parser("restore", help="make a data folder of a backup")
    restore.add_argument("file", metavar="FILE", help="what `trivec backup` wrote")
    restore.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    _add_settings(restore, ("data_dir",))
    restore.set_defaults(run=_with_settings(commands.restore))

    verify = subcommands.add_parser("verify", help="read everything stored and name what is damaged")
    verify.add_argument("--json", action="store_true", help="print what was found as one JSON object")
    _add_settings(verify, ("data_dir",))
    verify.set_defaults(run=_with_settings(commands.verify))

    reindex = subcommands.add_parser("reindex", help="embed a collection anew with another checkpoint")
    reindex.add_argument("--collection", default="default")
    reindex.add_argument(
        "--finish", action="store_true", help="nobody serves the folder any more: adopt what was embedded"
    )
    reindex.add_argument("--no-progress", action="store_true")
    reindex.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    _add_settings(reindex, (*MODEL_KNOBS, "passage_max_length", "max_batch_tokens", "data_dir"))
    reindex.set_defaults(run=_with_settings(commands.reindex))

    mcp = subcommands.add_parser("mcp", help="offer a server's collections to agents as tools (MCP)")
    mcp.add_argument("--url", default=None, help="server to use; else the one that holds the data folder")
    mcp.add_argument("--read-only", action="store_true", help="offer no tool that stores or deletes")
    mcp.add_argument(
        "--http",
        nargs="?",
        const="127.0.0.1:8765",
        default=None,
        metavar="[HOST:]PORT",
        help="listen for agents over HTTP (127.0.0.1:8765), not on standard input and output; each has the "
        "rights of the key it sends",
    )
    _add_settings(mcp, ("data_dir", "api_keys", "api_keys_file"))
    mcp.set_defaults(run=_with_settings(commands.mcp))

    bench = subcommands.add_parser("bench", help="measure a collection of this machine")
    measures = bench.add_subparsers(required=True, metavar="WHAT")
    recall = measures.add_parser("recall", help="what the dense index finds of the true best, and how fast")
    recall.add_argument("--collection", default="default")
    recall.add_argument("--queries", type=int, default=200, metavar="N", help="at most so many (200)")
    recall.add_argument(
        "--texts",
        metavar="IN.jsonl",
        default=None,
        help="ask these texts; else the vectors of random documents with noise, which needs no model",
    )
    recall.add_argument("--no-progress", action="store_true")
    recall.add_argument("--json", action="store_true", help="print what was measured as one JSON object")
    _add_settings(recall, (*MODEL_KNOBS, "data_dir"))
    recall.set_defaults(run=_with_settings(commands.bench_recall))
    return parser


def _add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Options for settings: None where not given, so that the environment and the defaults decide."""
    group = parser.add_argument_group("settings (each is also a variable TRIVEC_...)")
    for name in names:
        field = Settings.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, default=None, metavar="VALUE", help=text)


def _add_collection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", default="default")
    parser.add_argument("--url", default=None, help="server to use; else the one that holds the data folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_settings(parser, (*MODEL_KNOBS, "data_dir"))


def _settings(options: argparse.Namespace) -> Settings:
    given = {
        name: value for name in Settings.model_fields if (value := getattr(options, name, None)) is not None
    }
    try:
        return Settings(**given)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UsageError(f"setting {name}: {first['msg']}") from error


def _with_settings(
    command: Callable[[Settings, argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    return lambda options: command(_settings(options), options)


def _serve(options: argparse.Namespace) -> int:
    from app.server import serve

    return serve(_settings(options))


async def _index(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from app.client import ClientError, connect

    settings = _settings(options)
    lines = list(read_lines(options.input))
    path = f"/collections/{options.collection}/documents"
    upserted, failed = 0, []
    try:
        async with connect(settings, options.url) as client:
            with tqdm(
                total=len(lines), unit="doc", desc="indexing", disable=options.no_progress or None
            ) as bar:
                for begin in range(0, len(lines), INDEX_BATCH):
                    batch = lines[begin : begin + INDEX_BATCH]
                    body = b"\n".join(document_line(line) for _, line in batch)
                    answer = await client.post(path, content=body, kind="application/x-ndjson")
                    for result in answer["results"]:
                        if problem := result.get("error"):
                            failed.append({"line": batch[result["index"]][0], **problem})
                        else:
                            upserted += 1
                    bar.update(len(batch))
    except ClientError as error:
        raise InputError(f"after {upserted} documents: {error}") from error
    for one in failed:
        # The index's own messages name the field.
        field = f"{one['param']}: " if one["param"] and one["code"] == "invalid_request" else ""
        print(f"trivec: {options.input}: line {one['line']}: {field}{one['message']}", file=sys.stderr)
    if options.json:
        print(json.dumps({"collection": options.collection, "upserted": upserted, "failed": failed}))
    else:
        print(f"{upserted} documents indexed, {len(failed)} refused", file=sys.stderr)
    return 1 if failed else 0


async def _search(options: argparse.Namespace) -> int:
    from app.client import ClientError, connect

    request: dict[str, Any] = {"query": options.query, "mode": options.mode, "top_k": options.top_k}
    if options.filter is not None:
        try:
            request["filter"] = json.loads(options.filter)
        except ValueError as error:
            raise UsageError(f"--filter: not JSON: {error}") from error
    request["explain"] = options.explain
    try:
        async with connect(_settings(options), options.url) as client:
            answer = await client.post(f"/collections/{options.collection}/search", json=request)
    except ClientError as error:
        raise InputError(str(error)) from error
    if options.json:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    for place, hit in enumerate(answer["hits"], 1):
        legs = "  ".join(f"{leg} {score:.4f}" for leg, score in hit["scores"].items() if score is not None)
        print(f"{place:>3}. {hit['score']:.4f}  {hit['id']}  ({legs})")
        print(f"     {' '.join(hit['text'].split())[:160]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
