"""docs/deploy.md is true: its timeouts fit together and its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from app.connections import SLOW_BYTES_S, TAKEN_BYTES, Patience
from app.main import create_app
from app.server import EXTRA_S
from app.settings import Settings

GUIDE = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
PLAIN = " ".join(GUIDE.split())
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
ENDED_S = DEFAULTS["shutdown_timeout_s"] + EXTRA_S


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)
    return str(found)


def seconds(pattern: str, text: str = GUIDE) -> list[float]:
    found = [float(one) for one in re.findall(pattern, text)]
    assert found, pattern
    return found


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_a_proxy_waits_longer_and_keeps_connections_shorter(kind: str) -> None:
    text = block(kind)
    for waits in seconds(r"(?:proxy_read_timeout|response_header_timeout) (\d+)s", text):
        assert waits > DEFAULTS["request_timeout_s"]
    for keeps in seconds(r"keepalive(?:_timeout)? (\d+)s", text):
        assert keeps < DEFAULTS["keep_alive_s"]
    (mebibytes,) = seconds(r"(?:client_max_body_size|max_size) (\d+)(?:m|MiB)", text)
    assert mebibytes * 2**20 == DEFAULTS["max_body_bytes"]
    assert text.count("{") == text.count("}")


def test_nothing_is_killed_before_it_has_ended() -> None:
    for grace in seconds(r"(?:TimeoutStopSec=|--stop-timeout |stop_grace_period: )(\d+)"):
        assert grace > ENDED_S
    pod = yaml.safe_load(block("yaml"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before + ENDED_S


def test_the_probes_are_routes_that_need_no_key(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, api_keys=("key",)))
    paths = set(app.openapi()["paths"])
    manifest = yaml.safe_load(block("yaml"))
    assert manifest["spec"]["strategy"]["type"] == "Recreate" and manifest["spec"]["replicas"] == 1
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
    assert probes == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    for path in probes.values():
        assert path in paths and "security" not in app.openapi()["paths"][path]["get"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in manifest["spec"]["template"]["spec"]["volumes"]
    }
    for variable in container["env"]:
        assert variable["name"].removeprefix("TRIVEC_").lower() in Settings.model_fields


def test_numbers_are_those_of_the_code() -> None:
    patience = Patience()
    for said in (
        f"`TRIVEC_REQUEST_TIMEOUT_S` | {DEFAULTS['request_timeout_s']:g} s, then 504 |",
        f"`TRIVEC_KEEP_ALIVE_S` | {DEFAULTS['keep_alive_s']:g} s |",
        f"`TRIVEC_SHUTDOWN_TIMEOUT_S` | {DEFAULTS['shutdown_timeout_s']:g} s |",
        f"| that and {EXTRA_S:g} s | {ENDED_S:g} s |",
        f"Where something hangs it is ended after {EXTRA_S:g} s more",
        f"The head of a request has {patience.head_s:g} s and 16 KB",
        f"with less than {SLOW_BYTES_S // 1024} KB a second after {patience.body_s:g} s",
        f"takes less than {TAKEN_BYTES // 1024} KB of its answer in {patience.stalled_s:g} s",
    ):
        assert said in PLAIN, said


def test_limits_are_answered_as_the_guide_says() -> None:
    rows = dict(re.findall(r"\| `TRIVEC_(\w+)` \| (\d{3})\b", GUIDE))
    assert rows == {
        "MAX_BODY_BYTES": "413",
        "MAX_TEXTS": "422",
        "MAX_ANSWER_BYTES": "413",
        "MAX_JSON_NUMBERS": "422",
        "MAX_QUEUE_TOKENS": "429",
    }
