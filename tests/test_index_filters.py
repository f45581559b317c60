"""Filters: the grammar, its meaning, and that SQLite answers as Python does."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.index.errors import FilterError
from app.index.facts import facts, select
from app.index.filters import MAX_DEPTH, matches, parse
from app.index.storage import MIGRATIONS

DOCUMENT = {
    "lang": "en",
    "year": 2021,
    "score": 0.1,
    "draft": True,
    "gone": None,
    "tags": ["a", "b", 1],
    "empty": [],
    "author": {"name": "Ann", "born": {"year": 1970}},
    "parts": [{"n": 1, "who": "x"}, {"n": 5}],
    "matrix": [[1, 2], [3]],
    'a"quote': 1,
    "dot.ted": "yes",
    "$sum": 1,
    "naïve ☃": "snow",
    "nul\x00": "a\x00b",
    "": "nameless",
}


def _answers(source: object, documents: list[dict[str, object]]) -> list[int]:
    """Places of the documents that SQLite finds."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO collections VALUES (1, 'c', '', '', 0, 0, '', 0), (2, 'd', '', '', 0, 0, '', 0)"
    )
    for collection in (1, 2):
        for place, one in enumerate(documents):
            key = place + 1000 * (collection - 1)
            connection.execute(
                "INSERT INTO documents VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0, 0, 0, '', '')",
                (key, collection, str(key)),
            )
            rows = [(collection, key, *fact) for fact in facts(one)]
            connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?, ?)", rows)
    found = select(parse(source), connection, 1).tolist()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, True),
        ({"lang": "en"}, True),
        ({"lang": "de"}, False),
        ({"lang": "en", "year": 2020}, False),
        ({"year": 2021.0}, True),
        ({"year": "2021"}, False),
        ({"score": 0.1}, True),
        ({"draft": True}, True),
        ({"draft": 1}, False),
        ({"tags": True}, False),
        ({"year": {"$gte": 2021, "$lt": 2022}}, True),
        ({"year": {"$gt": 2021}}, False),
        ({"year": {"$lte": 2020.5}}, False),
        ({"draft": {"$gte": 0}}, False),
        ({"lang": {"$gt": "de"}}, True),
        ({"lang": {"$gt": 1}}, False),
        ({"gone": None}, True),
        ({"absent": None}, True),
        ({"absent": {"$ne": None}}, False),
        ({"lang": None}, False),
        ({"gone": {"$exists": True}}, True),
        ({"absent": {"$exists": True}}, False),
        ({"absent": {"$exists": False}}, True),
        ({"empty": {"$exists": True}}, True),
        ({"author": {"$exists": True}}, True),
        ({"tags": "a"}, True),
        ({"tags": 1}, True),
        ({"tags": {"$in": ["z", "b"]}}, True),
        ({"tags": {"$in": []}}, False),
        ({"tags": {"$nin": ["z"]}}, True),
        ({"tags": {"$ne": "a"}}, False),
        ({"absent": {"$ne": "a"}}, True),
        ({"absent": {"$in": ["a", None]}}, True),
        ({"author.name": "Ann"}, True),
        ({"author.born.year": {"$lt": 1980}}, True),
        ({"parts.n": 5}, True),
        ({"parts.n": {"$gt": 1, "$lt": 5}}, True),  # by different elements, as in MongoDB
        ({"matrix": 1}, False),
        ({'a"quote': 1}, True),
        ({"dot.ted": "yes"}, True),
        ({"naïve ☃": "snow"}, True),
        ({"nul\x00": "a\x00b"}, True),
        ({"nul\x00": "a"}, False),
        ({"": "nameless"}, True),
        ({"x') OR 1=1 --": 1}, False),
        ({"$or": [{"lang": "de"}, {"year": 2021}]}, True),
        ({"$and": [{"lang": "en"}, {"year": 2020}]}, False),
        ({"$not": {"lang": "en"}}, False),
        ({"$not": [{"lang": "de"}, {"year": 1}]}, True),
        ({"$not": [{"lang": "de"}, {"year": 2021}]}, False),
        ({"year": {"$not": {"$gt": 2030}}}, True),
    ],
)
def test_meaning(source: object, expected: bool) -> None:
    assert matches(parse(source), DOCUMENT) is expected
    assert _answers(source, [DOCUMENT]) == ([0] if expected else [])


@pytest.mark.parametrize(
    ("source", "path", "operator"),
    [
        ([], "", None),
        ("lang", "", None),
        ({"$nor": [{}]}, "$nor", "$nor"),
        ({"a": {"$near": 1}}, "a", "$near"),
        ({"a": {"b": 1}}, "a", "b"),
        ({"a": {"$gte": 1, "b": 1}}, "a", "b"),
        ({"a": {}}, "a", None),
        ({"a": [1]}, "a", "$eq"),
        ({"a": {"$eq": {"b": 1}}}, "a.$eq", "$eq"),
        ({"a": {"$in": "x"}}, "a.$in", "$in"),
        ({"a": {"$in": [[1]]}}, "a.$in", "$in"),
        ({"a": {"$gt": None}}, "a.$gt", "$gt"),
        ({"a": {"$gt": True}}, "a.$gt", "$gt"),
        ({"a": {"$exists": 1}}, "a.$exists", "$exists"),
        ({"a": {"$not": 1}}, "a.$not", "$not"),
        ({"$and": []}, "$and", "$and"),
        ({"$or": {"a": 1}}, "$or", "$or"),
        ({"$or": [{"a": 1}, {"b": {"$gt": []}}]}, "$or[1].b.$gt", "$gt"),
        ({"$not": 1}, "$not", "$not"),
        ({"a": float("nan")}, "a", "$eq"),
        ({"a": 2**63}, "a", "$eq"),
        ({1: 1}, "", None),
    ],
)
def test_refused(source: object, path: str, operator: str | None) -> None:
    with pytest.raises(FilterError) as caught:
        parse(source)
    assert (caught.value.path, caught.value.operator) == (path, operator)


def test_lone_surrogates_are_refused() -> None:
    for source in ({"a\ud800": 1}, {"a": "\ud800"}):
        with pytest.raises(FilterError):
            parse(source)


def test_limits() -> None:
    deep: object = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        deep = {"$not": deep}
    assert matches(parse(deep), {"a": 2})
    assert _answers(deep, [{"a": 2}, {"a": 1}]) == [0]
    with pytest.raises(FilterError, match="levels"):
        parse({"$not": deep})
    endless: list[object] = []
    endless.append({"$and": endless})
    with pytest.raises(FilterError, match="levels"):
        parse({"$and": endless})
    wide = {"$or": [{"a": {"$in": list(range(10))}} for _ in range(70)]}
    assert _answers(wide, [{"a": 9}, {"a": 10}]) == [0]
    with pytest.raises(FilterError, match="1000"):
        parse({"a": {"$in": list(range(1000))}})


@pytest.mark.parametrize(
    "metadata", [[], {"a": {1}}, {"a": float("inf")}, {"a": 2**64}, {1: 2}, {"a": "\udc00"}]
)
def test_metadata_that_is_not_json(metadata: object) -> None:
    with pytest.raises(ValueError):
        facts(metadata)  # type: ignore[arg-type]


_paths = st.sampled_from(["a", "b", "a.b", "b.a", 'q"', "$", "", "é.a"])
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**63 - 1, 0.1, 0.5, 1.0, -0.0, 9007199254740992.0, 1e300]),
    st.sampled_from(["", "a", "b", "A", "1", "é", "\U0001f600", "￿"]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=5,
)
_metadata = st.dictionaries(st.sampled_from(["a", "b", "a.b", 'q"', "$", "", "é"]), _values, max_size=4)
_bounds = _scalars.filter(lambda one: one is not None and not isinstance(one, bool))
_operators = st.one_of(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), _bounds)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("$eq", "$ne"), _scalars)),
    st.fixed_dictionaries({}, optional={name: st.lists(_scalars, max_size=3) for name in ("$in", "$nin")}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
).filter(bool)
_conditions = st.dictionaries(
    _paths.filter(lambda path: not path.startswith("$")),
    st.one_of(_scalars, _operators),
    min_size=1,
    max_size=2,
)
_filters = st.recursive(
    _conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(_filters, st.lists(_metadata, min_size=1, max_size=4))
def test_sqlite_answers_as_python(source: object, documents: list[dict[str, object]]) -> None:
    condition = parse(source)
    expected = [place for place, one in enumerate(documents) if matches(condition, one)]
    assert _answers(source, documents) == expected
