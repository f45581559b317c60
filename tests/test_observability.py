"""docs/observability.md, the dashboard and the alerts are true: they name what a service exposes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.endings import Reason
from tests.http_helpers import serving
from tests.test_logs import FIELDS
from tests.test_metrics import DOCUMENTS, Padded
from tests.test_tracing import tracing

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "observability.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))

OF_THE_SCRAPE = {"instance", "job"}
"""Labels that Prometheus itself adds."""
NOT_METRICS = {
    "by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset",
}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """What is exposed after some traffic, every label among it."""
    with serving(tmp_path_factory.mktemp("data"), Padded()) as client:
        client.post(DOCUMENTS, json=[{"id": "1", "text": "cat"}, {"text": 5}])
        client.post("/search", json={"query": "cat"})
        client.get("/nowhere")
        client.app.state.service.database.get("default").seal(1)  # type: ignore[attr-defined]
        text = client.get("/metrics").text
    return {one.name: one for one in text_string_to_metric_families(text)}


def exposed(family: Metric) -> dict[str, set[str]]:
    """Names of samples with their labels."""
    found: dict[str, set[str]] = {}
    for sample in family.samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def row(family: Metric) -> str:
    names = exposed(family)
    name = family.name if family.type == "histogram" else next(iter(names))
    labels = sorted(set().union(*names.values()) - {"le"})
    shown = ", ".join(f"`{one}`" for one in labels)
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def test_the_page_has_the_table_of_what_is_exposed(families: dict[str, Metric]) -> None:
    ours = [one for one in families.values() if one.name.startswith("trivec_")]
    assert all(one.samples for one in ours)
    table = "\n".join(["| metric | type | labels | what |", "|---|---|---|---|", *map(row, ours)]) + "\n"
    assert table in PAGE, f"the table should be:\n{table}"


def test_the_page_has_every_field_of_a_log_line() -> None:
    for field in FIELDS | {"trace_id"}:
        assert f"`{field}`" in PAGE, field


def test_the_page_has_every_reason_to_close_a_connection(families: dict[str, Metric]) -> None:
    assert all(f"| `{reason}` |" in PAGE for reason in get_args(Reason))
    begun = {one.labels["reason"] for one in families["trivec_connections_closed"].samples}
    assert begun == set(get_args(Reason))  # from the beginning, at 0: a first increase is seen only so


def test_the_page_has_every_span(tmp_path: Path) -> None:
    with tracing(tmp_path) as (client, watched):
        client.post(DOCUMENTS, json=[{"id": str(number), "text": f"cat {number}"} for number in range(9)])
        client.post("/search", json={"query": "cat", "filter": {"a": 1}})
        client.post("/search", json={"query": "cat", "top_k": 1, "candidates": 2})
        client.delete(f"{DOCUMENTS}/1")
        spans = watched.spans()
    for one in spans:
        assert one.parent is None or f"`{one.name}`" in PAGE, one.name
        for attribute in one.attributes or {}:
            assert f"`{attribute}`" in PAGE, attribute


def test_the_page_names_files_that_exist() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (DOCS / path).exists(), path


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert found is not None and variable["query"]["query"] == variable["definition"]
            yield f"variable {variable['name']}", f"sum by ({found[2]}) ({found[1]})"
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def named(expression: str) -> tuple[set[str], set[str]]:
    """Metrics and labels that a PromQL expression names."""
    text = re.sub(r'"[^"]*"', '""', expression)
    labels: set[str] = set()
    for inside in re.findall(r"\{([^}]*)\}", text):
        labels.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", text)
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    for inside in re.findall(grouping, text):
        labels.update(re.findall(r"\w+", inside))
    text = re.sub(grouping, " ", text)
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\s*(\(?)", text)
    return {word for word, opens in words if not opens and word not in NOT_METRICS}, labels


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda one: str(one)[:60])
def test_expressions_name_what_is_exposed(where: str, expression: str, families: dict[str, Metric]) -> None:
    known: dict[str, set[str]] = {"up": set()}
    for family in families.values():
        known |= exposed(family)
    metrics, labels = named(expression)
    assert metrics, where
    assert metrics <= known.keys(), (where, metrics - known.keys())
    assert labels <= OF_THE_SCRAPE.union(*(known[one] for one in metrics)), (where, labels)


def test_the_reading_of_expressions_can_fail() -> None:
    metrics, labels = named(
        'sum by (le, lane) (rate(a_bucket{x=~"by (y) z", w!="1"}[$__rate_interval])) > 1e9 or b'
    )
    assert metrics == {"a_bucket", "b"} and labels == {"le", "lane", "x", "w"}
    assert named("2 * on (instance) group_left (version) trivec_x unless vector(0)")[0] == {"trivec_x"}


def test_every_metric_is_on_the_dashboard(families: dict[str, Metric]) -> None:
    shown = set().union(*(named(one)[0] for where, one in expressions() if where.startswith("panel")))
    for family in families.values():
        if family.name.startswith("trivec_"):
            assert shown & set(exposed(family)), family.name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"] and panel["targets"]
            assert {one["datasource"]["uid"] for one in panel["targets"]} == {"${datasource}"}
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all"}
    assert used <= variables
    assert DASHBOARD["uid"] == "trivec" and "id" not in DASHBOARD


def test_alerts_say_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"]
