"""The tools that agents are offered, each a request or two to a Trivec server. It knows no agent protocol."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from app.agents.arguments import (
    Answer,
    Arguments,
    CollectionAnswer,
    DeleteAnswer,
    DeleteArguments,
    DocumentAnswer,
    DocumentArguments,
    HitAnswer,
    IndexAnswer,
    IndexArguments,
    ListAnswer,
    ListArguments,
    NewDocument,
    Refusal,
    SearchAnswer,
    SearchArguments,
)
from app.agents.remote import Remote
from app.agents.words import in_words
from app.client import ClientError

MAX_METADATA_CHARS = 4000
"""Of a hit's metadata as JSON; more is left to `get_document`."""
_MAX_FINDINGS = 5
_T = TypeVar("_T", bound=Arguments)


class ToolError(Exception):
    """A call that did not do what it should; the message is for the agent."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: how it is called, what it gives, and whether it changes anything."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    answer: type[Answer]
    run: Callable[[Remote, Mapping[str, Any]], Awaitable[Answer]]
    writes: bool = False
    destroys: bool = False
    """Whether documents may be lost by it."""


async def search(remote: Remote, given: Mapping[str, Any]) -> SearchAnswer:
    """POST /collections/{name}/search."""
    wanted = checked(SearchArguments, given)
    body: dict[str, Any] = {
        "query": wanted.query,
        "mode": wanted.mode,
        "top_k": wanted.top_k,
        "explain": wanted.explain,
    }
    if wanted.filter is not None:
        body["filter"] = wanted.filter
    found = await remote.request("POST", f"{_collection(wanted.collection)}/search", body)
    hits = [_hit(hit, wanted) for hit in found["hits"]]
    return SearchAnswer(collection=wanted.collection, hits=hits)


def _hit(hit: Mapping[str, Any], wanted: SearchArguments) -> HitAnswer:
    text, explanation = hit["text"], hit.get("explanation")
    shown = len(json.dumps(hit["metadata"], ensure_ascii=False)) <= MAX_METADATA_CHARS
    return HitAnswer(
        id=hit["id"],
        score=round(hit["score"], 4),
        scores={leg: round(score, 4) for leg, score in hit["scores"].items() if score is not None},
        text=text[: wanted.max_chars],
        text_is_cut=len(text) > wanted.max_chars,
        metadata=hit["metadata"] if shown else None,
        explanation=None if explanation is None else in_words(wanted.query, text, explanation),
    )


async def index(remote: Remote, given: Mapping[str, Any]) -> IndexAnswer:
    """POST /collections/{name}/documents, after PUT /collections/{name} where it is to be made."""
    wanted = checked(IndexArguments, given)
    documents = [
        one.model_dump(exclude_none=True) if isinstance(one, NewDocument) else {"text": one}
        for one in wanted.documents
    ]
    path = _collection(wanted.collection)
    try:
        stored = await remote.request("POST", f"{path}/documents", documents)
    except ClientError as error:
        if not str(error).startswith("collection_not_found"):
            raise
        if not wanted.create_collection:
            raise ToolError(f"{error}; `create_collection: true` makes it") from error
        await remote.request("PUT", path)
        stored = await remote.request("POST", f"{path}/documents", documents)
    return _stored(wanted.collection, stored["results"])


def _stored(collection: str, results: list[dict[str, Any]]) -> IndexAnswer:
    """Raises ToolError where nothing was stored."""
    refused = [
        Refusal(position=one["index"], id=one.get("id"), problem=_said(one["error"]))
        for one in results
        if one.get("error")
    ]
    if len(refused) == len(results):
        findings = "; ".join(f"document {one.position}: {one.problem}" for one in refused[:_MAX_FINDINGS])
        raise ToolError(f"nothing was stored: {findings}")
    kept = [one for one in results if not one.get("error")]
    return IndexAnswer(
        collection=collection,
        stored=[one["id"] for one in kept],
        refused=refused,
        cut=[one["id"] for one in kept if one["truncated"]],
    )


def _said(error: Mapping[str, Any]) -> str:
    where = f" ({error['param']})" if error.get("param") else ""
    return f"{error['code']}{where}: {error['message']}"


async def delete_documents(remote: Remote, given: Mapping[str, Any]) -> DeleteAnswer:
    """POST /collections/{name}/documents/delete."""
    wanted = checked(DeleteArguments, given)
    if (wanted.ids is None) == (wanted.filter is None):
        raise ToolError("give either `ids` or `filter`")
    body = {"ids": wanted.ids} if wanted.ids is not None else {"filter": wanted.filter}
    done = await remote.request("POST", f"{_collection(wanted.collection)}/documents/delete", body)
    return DeleteAnswer(collection=wanted.collection, deleted=done["deleted"])


async def list_collections(remote: Remote, given: Mapping[str, Any]) -> ListAnswer:
    """GET /collections."""
    checked(ListArguments, given)
    found = await remote.request("GET", "/collections")
    return ListAnswer(
        collections=[
            CollectionAnswer(name=one["name"], documents=one["count"], created=one["created"])
            for one in found["collections"]
        ]
    )


async def get_document(remote: Remote, given: Mapping[str, Any]) -> DocumentAnswer:
    """GET /collections/{name}/documents/{id}."""
    wanted = checked(DocumentArguments, given)
    found = await remote.request("GET", f"{_collection(wanted.collection)}/documents/{_part(wanted.id)}")
    end = wanted.offset + wanted.max_chars
    return DocumentAnswer(
        id=found["id"],
        text=found["text"][wanted.offset : end],
        total_chars=len(found["text"]),
        next_offset=end if end < len(found["text"]) else None,
        metadata=found["metadata"],
    )


def _collection(name: str) -> str:
    return f"/collections/{_part(name)}"


def _part(name: str) -> str:
    """One part of a path; a name of dots alone would otherwise be resolved like a folder's."""
    return quote(name, safe="").replace(".", "%2E")


def checked(model: type[_T], given: Mapping[str, Any]) -> _T:
    """Arguments as the tool takes them. Raises ToolError with all that is wrong, in an agent's words."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        findings = error.errors(include_url=False, include_input=False)
        wrong = "; ".join(_finding(one, model) for one in findings[:_MAX_FINDINGS])
        raise ToolError(f"nothing was done, for the arguments do not fit: {wrong}") from error


def _finding(finding: Mapping[str, Any], model: type[Arguments]) -> str:
    where = ".".join(str(part) for part in finding["loc"] if not str(part).startswith("<"))[:200]
    if finding["type"] != "extra_forbidden":
        return f"{where}: {finding['msg']}"
    if len(finding["loc"]) > 1:
        return f"{where}: there is no such field"
    return f"{where}: there is no such argument; known are: {', '.join(model.model_fields) or 'none'}"


TOOLS = (
    Tool(
        "search",
        "Search documents",
        "Search the documents of a Trivec collection and get the best-matching ones with their texts. Finds "
        "by meaning, by words and by exact phrasing at once, across languages. Use it to look up facts "
        "before you answer; ask again in other words where the hits do not answer the question.",
        SearchArguments,
        SearchAnswer,
        search,
    ),
    Tool(
        "get_document",
        "Read a document",
        "Read one document whole, by the id that search gave, with its metadata. Long texts come in parts: "
        "read on with next_offset.",
        DocumentArguments,
        DocumentAnswer,
        get_document,
    ),
    Tool(
        "list_collections",
        "List collections",
        "List the collections of documents and how many each holds. Look here before you search a collection "
        "other than `default`.",
        ListArguments,
        ListAnswer,
        list_collections,
    ),
    Tool(
        "index",
        "Store documents",
        "Store documents so that search finds them: durable and searchable when this returns. A document of "
        "an id that is there already is replaced. Those that cannot be stored are named in `refused`, the "
        "others are stored.",
        IndexArguments,
        IndexAnswer,
        index,
        writes=True,
        destroys=True,
    ),
    Tool(
        "delete_documents",
        "Delete documents",
        "Delete documents of a collection for good, by ids or by a metadata filter. It cannot be undone.",
        DeleteArguments,
        DeleteAnswer,
        delete_documents,
        writes=True,
        destroys=True,
    ),
)
