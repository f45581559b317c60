"""The BM25 benchmark's own logic: long documents made of passages, and what is relevant then."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bm25 import articles, dataset


def test_passages_of_one_title_are_one_document() -> None:
    passages = [
        {"id": "1", "title": "A", "text": "one"},
        {"id": "2", "title": "B", "text": "two"},
        {"id": "3", "title": "A", "text": "three"},
    ]
    joined, graded = articles(passages, {"q": {"1": 1, "3": 2}, "r": {"2": 1, "3": 0}})
    assert joined == [
        {"id": "A", "title": "A", "text": "one\nthree"},
        {"id": "B", "title": "B", "text": "two"},
    ]
    assert graded == {"q": {"A": 2}, "r": {"B": 1, "A": 0}}


def test_only_judged_questions_are_asked_and_no_document_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": "d", "title": "", "text": ""}, {"_id": "e", "title": "t", "text": ""}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n{"_id": "r", "text": "b"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nr\te\t1\n")
    documents, questions, qrels = dataset(tmp_path, "set")
    assert documents == [{"id": "d", "title": "", "text": " "}, {"id": "e", "title": "t", "text": ""}]
    assert [row["_id"] for row in questions] == ["r"] and qrels == {"r": {"e": 1}}
