"""Settings: each knob once, from the environment, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import PREFIX, Settings, knob_table, unknown_variables

README = Path(__file__).parent.parent / "README.md"


def test_knobs_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIVEC_PORT", "9001")
    monkeypatch.setenv("TRIVEC_DENSE_ONLY", "true")
    monkeypatch.setenv("TRIVEC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TRIVEC_API_KEYS", "alpha, beta:read")
    settings = Settings()
    assert (settings.port, settings.dense_only, settings.data_dir) == (9001, True, tmp_path)
    keys = settings.keys()
    assert [(key.secret, key.read_only) for key in keys] == [(b"alpha", False), (b"beta", True)]


def test_settings_are_frozen_and_never_show_a_key() -> None:
    settings = Settings(api_keys=("secret-key",))
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert "secret-key" not in repr(settings) + str(settings) + repr(settings.keys())


@pytest.mark.parametrize(
    "knobs",
    [
        {"port": 70000},
        {"engine": "fast"},
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 100, "max_queue_tokens": 50},
        {"request_timeout_s": float("nan")},
        {"request_timeout_s": 0},
        {"query_max_length": 9000},
        {"api_keys": "with space"},
        {"api_keys": ":read"},
        {"nonsense": 1},
    ],
)
def test_a_wrong_knob_is_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**knobs)  # type: ignore[arg-type]


def test_a_refused_key_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(api_keys="se cret")  # type: ignore[arg-type]
    assert "se cret" not in str(refusal.value)


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\ntwo:read\n")
    keys = Settings(api_keys=("zero",), api_keys_file=path).keys()
    assert [key.secret for key in keys] == [b"zero", b"one", b"two"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_key_file_without_keys_never_opens_the_server(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="api_keys_file"):
        Settings(api_keys_file=path).keys()
    with pytest.raises(ValueError, match="api_keys_file"):
        Settings(api_keys_file=tmp_path / "absent").keys()


def test_a_slip_of_the_pen_is_noticed() -> None:
    environ = {"TRIVEC_PROT": "1", "TRIVEC_PORT": "1", "PATH": "/", "trivec_nonsense": "1"}
    assert unknown_variables(environ) == ["TRIVEC_PROT", "trivec_nonsense"]


def test_every_knob_says_what_it_is_for() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith((".", ";")), name


def test_the_readme_has_the_table_of_this_class() -> None:
    table = knob_table()
    assert all(f"`{PREFIX}{name.upper()}`" in table for name in Settings.model_fields)
    assert table in README.read_text(encoding="utf-8")
