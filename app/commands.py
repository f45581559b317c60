"""What the commands of `trivec` do that are no clients of the service; their options are `cli.py`'s affair.

Each takes the settings and the command line's options, prints results to standard output and the rest to
standard error, and returns the exit status. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.jsonl import InputError, read_texts, write_whole
from app.quiet import import_engine
from app.settings import Settings

if TYPE_CHECKING:
    from app.bench import Queries
    from app.index.backup import BackupReport
    from app.index.collection import Collection
    from app.index.derived import Derived
    from app.index.digests import Damaged
    from app.reindex import ReindexReport
    from model.embedding import FloatArray, Output


class UsageError(Exception):
    """The command was used wrongly."""


def embed(settings: Settings, options: argparse.Namespace) -> int:
    """Texts of a JSONL file to a safetensors file."""
    from app.wire import safetensors_body
    from model.embedding import OUTPUTS

    wanted = OUTPUTS if options.outputs is None else [name.strip() for name in options.outputs.split(",")]
    if not wanted or set(wanted) - set(OUTPUTS):
        raise UsageError(f"--outputs: choose from {', '.join(OUTPUTS)}")
    if options.batch_tokens is not None:
        if options.batch_tokens < 2:
            raise UsageError(f"--batch-tokens: {options.batch_tokens} is less than 2")
        settings = settings.model_copy(update={"max_batch_tokens": options.batch_tokens})
    texts = read_texts(options.input)
    if not texts:
        raise InputError(f"{options.input}: holds no texts")
    import_engine(settings.engine)  # only now: what is wrong with the input is said at once
    from app.loading import load_text_model

    model = load_text_model(settings, progress=not options.no_progress)
    present = [name for name in wanted if name in model.card.outputs] if options.outputs is None else wanted
    found = model.embedder.encode(
        texts,
        kind=options.kind,
        outputs=present,
        max_length=options.max_length,
        truncate=not options.no_truncate,
        normalize=not options.no_normalize,
        progress=False if options.no_progress else None,
    )
    write_whole(Path(options.output), safetensors_body(found))
    summary = {
        "texts": len(found),
        "tokens": sum(one.tokens for one in found),
        "truncated": sum(one.truncated for one in found),
        "outputs": list(present),
        "output": options.output,
        "model": model.card.name,
    }
    if options.json:
        print(json.dumps(summary))
    else:
        cut = f", {summary['truncated']} of them truncated" if summary["truncated"] else ""
        print(
            f"{summary['texts']} texts{cut}, {summary['tokens']} tokens -> {options.output}", file=sys.stderr
        )
    return 0


def selftest(settings: Settings, options: argparse.Namespace) -> int:
    """This machine's outputs beside the reference's."""
    import_engine(settings.engine)
    from app.loading import load_text_model
    from app.selftest import is_published, run_selftest

    model = load_text_model(settings)
    published = options.published or is_published(model.card.name, model.folder)
    checks = run_selftest(model.embedder, model.folder, published=published, precision=model.card.precision)
    passed = all(check.passed for check in checks)
    if options.json:
        heads = {
            check.head: {
                # JSON has no infinity: null says that there is nothing to compare.
                "largest_difference": check.difference if math.isfinite(check.difference) else None,
                "tolerance": check.tolerance,
                "passed": check.passed,
            }
            for check in checks
        }
        against = "published" if published else "golden"
        print(json.dumps({"model": model.card.name, "against": against, "passed": passed, "heads": heads}))
        return 0 if passed else 1
    print(f"{model.card.name} against {'the published' if published else 'its golden'} outputs:")
    for check in checks:
        found = f"largest difference {check.difference:.2e}, allowed {check.tolerance:.0e}"
        print(f"  {check.head:<8} {found}  {'ok' if check.passed else 'FAILED'}")
    return 0 if passed else 1


def download(settings: Settings, options: argparse.Namespace) -> int:
    """A checkpoint from the hub."""
    from app.loading import resolve

    print(resolve(settings, progress=not options.no_progress).folder)
    return 0


def export(settings: Settings, options: argparse.Namespace) -> int:
    """A checkpoint converted for the int8 engine."""
    from app.converting import converted_checkpoint
    from app.converting import export as export_to
    from app.loading import resolve

    source, cache, dense_only = resolve(settings).folder, settings.converted_dir, settings.dense_only
    if options.output is None:
        print(converted_checkpoint(source, cache, dense_only=dense_only).folder)
        return 0
    print(export_to(source, cache, Path(options.output), dense_only=dense_only).folder)
    print(f"Serve it with: trivec serve --checkpoint {options.output} --engine int8", file=sys.stderr)
    return 0


def backup(settings: Settings, options: argparse.Namespace) -> int:
    """A data folder to a file."""
    from app.index.backup import backup as backup_to

    return _copied(backup_to(settings.data_dir, Path(options.output)), options.json)


def restore(settings: Settings, options: argparse.Namespace) -> int:
    """A backup to a data folder."""
    from app.index.backup import restore as restore_to

    return _copied(restore_to(Path(options.file), settings.data_dir), options.json)


def _copied(report: BackupReport, as_json: bool) -> int:
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "file": str(report.file)}))
    else:
        print(
            f"{report.documents} documents of {report.collections} collections, "
            f"{report.bytes / 1e6:.1f} MB -> {report.file}",
            file=sys.stderr,
        )
    return _damaged(report.damaged)


def verify(settings: Settings, options: argparse.Namespace) -> int:
    """Every stored row against its digest."""
    from app.index.verify import verify as verify_folder

    report = verify_folder(settings.data_dir)
    if options.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        print(f"{report.documents} documents, {len(report.damaged)} damaged", file=sys.stderr)
    return _damaged(report.damaged)


def _damaged(found: Sequence[Damaged]) -> int:
    for one in found:
        print(
            f"damaged: collection {one.collection}, document {one.id!r}: its {one.part}; "
            "write the document again or delete it",
            file=sys.stderr,
        )
    return 1 if found else 0


def reindex(settings: Settings, options: argparse.Namespace) -> int:
    """A collection's vectors by the checkpoint of the settings."""
    from app.ports import TextModel
    from app.reindex import reindex as run

    def load() -> TextModel:
        import_engine(settings.engine)
        from app.loading import load_text_model

        return load_text_model(settings, progress=not options.no_progress)

    report = run(settings, options.collection, load, finish=options.finish, progress=not options.no_progress)
    for error in report.refused:
        print(f"trivec: {error}", file=sys.stderr)
    if options.json:
        refused = [{"id": error.document_id, "message": str(error)} for error in report.refused]
        holder = None if report.holder is None else dataclasses.asdict(report.holder)
        print(json.dumps({**_shallow(report), "refused": refused, "holder": holder}))
    else:
        print(_said(report, settings.data_dir), file=sys.stderr)
    return 1 if report.refused else 0


def _shallow(report: ReindexReport) -> dict[str, object]:
    return {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}


def _said(report: ReindexReport, folder: Path) -> str:
    name = f"collection {report.collection}"
    done = f"{report.documents} documents of {name}, {report.embedded} of them embedded now"
    if report.status == "current":
        return f"{name} is of {report.model} already: nothing to do"
    if report.status == "adopted":
        return f"{done}: all are of {report.model} from now on"
    if report.status == "refused":
        return (
            f"{done}, {len(report.refused)} refused: nothing was changed; replace or delete those documents "
            "and run the command again"
        )
    holder = report.holder
    who = "a server" if holder is None or holder.pid is None else f"process {holder.pid}"
    where = "" if holder is None or holder.url is None else f" at {holder.url}"
    return (
        f"{done}: staged for {report.model}, and nothing was changed, for {who} serves {folder}{where}.\n"
        f"1. Stop that server.\n"
        "2. Run this command again with --finish: it embeds what has changed by then and adopts all.\n"
        "3. Start the server with the new checkpoint."
    )


def bench_recall(settings: Settings, options: argparse.Namespace) -> int:
    """What the dense leg finds of the true best."""
    from app.bench import noisy_documents, recall

    if options.queries < 1:
        raise UsageError(f"--queries: {options.queries} is less than 1")
    queries = noisy_documents(options.queries)
    if options.texts is not None:
        queries = _asked(settings, read_texts(options.texts)[: options.queries], options)
    report = recall(settings.data_dir, options.collection, queries, progress=not options.no_progress)
    if options.json:
        print(json.dumps(dataclasses.asdict(report)))
        return 0
    rows = ", ".join(f"{count} {kind}" for kind, count in report.rows.items())
    print(
        f"collection {report.collection}: {report.documents} documents, {report.segments} segments, "
        f"rows: {rows}\n"
        f"{report.queries} queries on {report.threads} threads\n"
        f"  recall@10 {report.recall_at_10:.4f}   recall@100 {report.recall_at_100:.4f}\n"
        f"  dense leg   {report.search_ms:8.2f} ms   95th percentile {report.search_p95_ms:8.2f} ms\n"
        f"  exact scan  {report.exact_ms:8.2f} ms   95th percentile {report.exact_p95_ms:8.2f} ms"
    )
    return 0


def _asked(settings: Settings, texts: Sequence[str], options: argparse.Namespace) -> Queries:
    """Texts as queries of the model that made the collection."""
    if not texts:
        raise InputError(f"{options.texts}: holds no texts")
    import_engine(settings.engine)
    import numpy as np

    from app.loading import load_text_model

    model = load_text_model(settings, progress=not options.no_progress)
    wanted: tuple[Output, ...] = ("dense",)
    found = model.embedder.encode(texts, kind="query", outputs=wanted, progress=False)

    def ask(collection: Collection, _: Derived) -> FloatArray:
        collection.check_model(model.card.fingerprint)
        return np.stack([one.dense for one in found if one.dense is not None])

    return ask
