"""Every knob of the service, declared once: the only reader of the environment.

A knob `some_name` is the variable `TRIVEC_SOME_NAME` and the option `--some-name` of `trivec serve`.
README's table is made from this class by `knob_table` and a test compares the two.
It does not say what the model can do: a length that exceeds the model's own is capped where it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "TRIVEC_"
READ_ONLY_SUFFIX = ":read"
ANY_ORIGIN = "*"
_ORIGIN = re.compile(
    r"(?:http(?!s?://.*:80$)|https(?!://.*:443$))://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key that a client may send; `repr` hides it, because settings end up in logs."""

    secret: bytes
    read_only: bool

    def __repr__(self) -> str:
        return f"ApiKey(read_only={self.read_only})"


class Settings(BaseSettings):
    """Frozen settings; raises pydantic's ValidationError naming each knob that is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    checkpoint: str = Field(
        default="mini",
        min_length=1,
        description="Folder or hub id of the checkpoint; `mini` is the one that ships with the package.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of a hub checkpoint; pin it, so that vectors stay comparable.",
    )
    engine: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        default="auto",
        description="Arithmetic of the forward pass: int8 is for CPUs, float16 for GPUs; `auto` is float32.",
    )
    dense_only: bool = Field(
        default=False,
        description="Serve a checkpoint that lacks the lexical and ColBERT heads, by explicit wish only.",
    )
    data_dir: Path = Field(
        default=Path("~/.local/share/trivec"),
        description="Folder of the collections; one server at a time holds its lock.",
    )
    cache_dir: Path | None = Field(
        default=None, description="Folder for downloaded checkpoints; unset means the hub library's own."
    )
    converted_dir: Path = Field(
        default=Path("~/.cache/trivec"),
        description="Folder for checkpoints converted to int8, made once each.",
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; only this machine unless changed.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 lets the system choose one.")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        repr=False,
        description="Comma-separated keys, `key` or `key:read` (no writing); with none, everyone may do all.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with one such key a line, so that keys need not be in the environment.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins whose pages may call the server from a browser, as in "
        "`https://app.example.com`, or `*` for all; with none, no page of another origin may.",
    )
    max_batch_tokens: int = Field(
        default=2048,
        ge=2,
        description="Tokens in one forward pass; nothing is padded, so more gains little.",
    )
    max_queue_tokens: int = Field(
        default=262144, ge=2, description="Tokens waiting for the model before new requests are answered 429."
    )
    max_searches: int = Field(
        default=512, ge=1, description="Searches under way at a time before new ones are answered 429."
    )
    max_body_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=1024,
        description="Bytes of a request body, or of one line of an NDJSON body; more is answered 413.",
    )
    max_json_numbers: int = Field(
        default=12_000_000,
        ge=1,
        description="Numbers in one JSON answer that holds vectors, so that it stays below 200 MB (16 bytes "
        "each at most); base64 and safetensors are not bound by it.",
    )
    max_answer_bytes: int = Field(
        default=1024**3,
        ge=1024,
        description="Bytes of the vectors of one request as float32, or of the texts, metadata and explained "
        "vectors of its hits; more is answered 413. Upserts are not bound.",
    )
    gzip_max_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=0,
        description="Bytes up to which a JSON answer is gzipped, from 1 KB on, where the client accepts it; "
        "0 means never.",
    )
    max_texts: int = Field(
        default=2048,
        ge=1,
        description="Texts, queries or documents in one request; NDJSON bodies are not bound by it.",
    )
    max_top_k: int = Field(default=1000, ge=1, description="Hits that one query may ask for.")
    max_candidates: int = Field(
        default=10000, ge=1, description="Candidates per leg that one query may ask to be scored exactly."
    )
    query_cache_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=0,
        description="Memory for the embeddings of the queries that were searched last, so that a query asked "
        "again needs no forward pass (some 50 KB each at BGE-M3's size); 0 keeps none.",
    )
    query_max_length: int = Field(
        default=512,
        ge=2,
        le=8192,
        description="Tokens kept of a query unless the request says; the reference's default.",
    )
    passage_max_length: int = Field(
        default=512,
        ge=2,
        le=8192,
        description="Tokens kept of a passage or document; the reference's default.",
    )
    tei_auto_truncate: bool = Field(
        default=False,
        description="Under `/tei`, cut texts that are too long where a request does not say `truncate`; else "
        "they are refused.",
    )
    request_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="Seconds until an unanswered request gets 504, where `X-Request-Timeout` does not say.",
    )
    shutdown_timeout_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that requests under way get to finish after SIGTERM.",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Open connections; for one more the longest idle one is closed, or it is answered 503.",
    )
    keep_alive_s: float = Field(
        default=75.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that a connection may rest between requests; more than the proxy in front has.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads inside one forward pass; 0 means one for each physical core within the "
        "container's CPU quota.",
    )
    tokenizer_threads: int = Field(
        default=2,
        ge=1,
        le=256,
        description="Requests tokenised at the same time; the model thread needs cores too.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line written; `info` has one line for each request."
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("api_keys")
    @classmethod
    def _sendable_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not _sendable(key) for key in value):
            raise ValueError("a key must be printable ASCII without spaces, for it travels in a header")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError(
                "exact origins are expected, as a browser sends them: scheme, host in lower case, and a port "
                "that is not the scheme's own, as in https://app.example.com or http://localhost:3000"
            )
        return value

    @field_validator("data_dir", "cache_dir", "converted_dir", "api_keys_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Settings:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(
                f"max_queue_tokens {self.max_queue_tokens} is below max_batch_tokens {self.max_batch_tokens}"
            )
        return self

    def keys(self) -> tuple[ApiKey, ...]:
        """The keys of `api_keys` and of the key file. Raises ValueError where the file is of no use."""
        written = self.api_keys + (_read_keys(self.api_keys_file) if self.api_keys_file is not None else ())
        return tuple(
            ApiKey(key.removesuffix(READ_ONLY_SUFFIX).encode(), key.endswith(READ_ONLY_SUFFIX))
            for key in written
        )


def _sendable(key: str) -> bool:
    secret = key.removesuffix(READ_ONLY_SUFFIX)
    return bool(secret) and secret.isascii() and secret.isprintable() and " " not in secret


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_keys_file cannot be read as ASCII text: {type(error).__name__}") from error
    # An empty file would open the server to everyone: whoever names a file wants keys.
    if not lines or any(not _sendable(key) for key in lines):
        raise ValueError("api_keys_file must hold at least one key, one a line, in printable ASCII")
    return tuple(lines)


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables that carry the prefix but name no knob: most likely a slip of the pen."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    names = os.environ if environ is None else environ
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def traces_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's standard variables name a collector; the others are for its SDK to read."""
    names = os.environ if environ is None else environ
    exporters = {one.strip().lower() for one in names.get("OTEL_TRACES_EXPORTER", "").split(",")} - {""}
    if exporters:
        named = "otlp" in exporters
    else:
        named = any(names.get(f"OTEL_EXPORTER_OTLP_{one}ENDPOINT", "").strip() for one in ("TRACES_", ""))
    return named and names.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


def knob_table() -> str:
    """The knobs as a Markdown table, a row each in the order of the class."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = "unset" if field.default in (None, ()) else f"`{_plain(field.default)}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
