"""What a scrape says, as numbers by name and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """One answer of `GET /metrics`."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, answer: Any) -> Scrape:
        """An answer in the plain format."""
        assert answer.status_code == 200, answer.text
        values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in values, f"{key} is there twice"
                values[key] = sample.value
        return cls(values)

    def __call__(self, name: str, /, **labels: str) -> float:
        """The sum of the series that have these labels, among others; 0 where there are none."""
        wanted = set(labels.items())
        return sum(value for (one, have), value in self.values.items() if one == name and wanted <= have)

    def has(self, name: str, /, **labels: str) -> bool:
        """Whether there is such a series."""
        wanted = set(labels.items())
        return any(one == name and wanted <= have for one, have in self.values)

    def labels(self, name: str, label: str) -> set[str]:
        """The values of a label."""
        return {dict(have)[label] for one, have in self.values if one == name and label in dict(have)}


def scraped(client: Any, **headers: str) -> Scrape:
    """Scrape a test client's service."""
    return Scrape.of(client.get("/metrics", headers=headers))
