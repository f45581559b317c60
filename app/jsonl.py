"""Files of the command line: JSON Lines read and checked, results written whole or not at all."""

from __future__ import annotations

import codecs
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from app.errors import ServiceFault
from app.wire import parse_json


class InputError(ValueError):
    """An input file cannot be read, or a line of it is not what is expected."""


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; `-` is standard input."""
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                # Some editors put a byte order mark before the first line.
                bare = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if bare.strip():
                    yield number, bare
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error


def read_texts(path: str) -> list[str]:
    """The `text` of every line. Raises InputError naming the line that has none."""
    return [_text(path, number, line) for number, line in read_lines(path)]


def _text(path: str, number: int, line: bytes) -> str:
    try:
        fields = parse_json(line)
    except ServiceFault as error:
        raise InputError(f"{path}: line {number}: {error}") from error
    text = fields.get("text") if isinstance(fields, dict) else None
    if not isinstance(text, str) or not text:
        raise InputError(
            f'{path}: line {number}: an object with a text is expected, such as {{"text": "..."}}'
        )
    return text


def document_line(line: bytes) -> bytes:
    """A line of a corpus file as the server takes it: BEIR's `_id` is called `id` there.

    What is not a JSON object goes through as it is: the server says what is wrong with it.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return line.strip()
    if isinstance(fields, dict) and "_id" in fields and "id" not in fields:
        fields["id"] = fields.pop("_id")
        return json.dumps(fields).encode()
    return line.strip()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of one.

    Raises InputError where the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
