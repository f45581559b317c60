"""The architecture of an XLM-RoBERTa checkpoint, read from its `config.json`.

It does not read weights, and of the many fields of a Hugging Face config it keeps only those
that change what the encoder computes. A field that asks for something else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class ConfigError(ValueError):
    """The `config.json` cannot be read, or describes an encoder that this is not."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes and constants of the encoder; the names are those of `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    bos_token_id: int
    pad_token_id: int
    eos_token_id: int

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """Longest text in tokens, `<s>` and `</s>` included: positions start at pad id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_file(cls, path: Path) -> EncoderConfig:
        """Read a `config.json`; a field that it lacks takes the reference's own default.

        Raises ConfigError naming the file and the field.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: cannot read the encoder's config: {error}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: a JSON object is expected, not {type(fields).__name__}")
        return cls.from_fields(fields, str(path))

    @classmethod
    def from_fields(cls, fields: Mapping[str, object], source: str = "config") -> EncoderConfig:
        """Check the fields of a Hugging Face XLM-RoBERTa config and keep those that matter."""
        for name, supported in _ONLY.items():
            if (value := fields.get(name, supported[0])) not in supported:
                wanted = " or ".join(repr(one) for one in supported)
                raise ConfigError(f"{source}: {name} is {value!r}; this encoder computes {wanted} only")
        fields = {**fields, **_reference_defaults(fields)}
        values = {name: _number(source, name, fields[name], least) for name, least in _LEAST.items()}
        if values["num_hidden_layers"] > _MOST_LAYERS:
            raise ConfigError(
                f"{source}: num_hidden_layers {values['num_hidden_layers']} is over {_MOST_LAYERS}"
            )
        config = cls(
            **values,
            layer_norm_eps=_epsilon(source, fields["layer_norm_eps"]),
        )
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"{source}: hidden_size {config.hidden_size} does not divide into "
                f"{config.num_attention_heads} attention heads"
            )
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            if values[name] >= config.vocab_size:
                raise ConfigError(f"{source}: {name} {values[name]} is outside the vocabulary")
        if config.max_length < 2:
            raise ConfigError(
                f"{source}: max_position_embeddings {config.max_position_embeddings} leaves no room for text"
            )
        return config


# What the encoder computes; a config that asks for anything else is refused, not approximated.
_ONLY: Mapping[str, tuple[object, ...]] = {
    "model_type": ("xlm-roberta", "roberta"),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}

# Far above any XLM-R: a damaged or hostile file must not make us list billions of tensors.
_MOST_LAYERS = 1000

# Integer fields and the least value that makes sense.
_LEAST: Mapping[str, int] = {
    "vocab_size": 4,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 4,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 0,
}


def _reference_defaults(fields: Mapping[str, object]) -> dict[str, object]:
    """What transformers takes for the fields that are absent; it is imported only where one is."""
    absent = [name for name in (*_LEAST, "layer_norm_eps") if fields.get(name) is None]
    if not absent:
        return {}
    from transformers import XLMRobertaConfig

    reference = XLMRobertaConfig().to_dict()
    return {name: reference[name] for name in absent}


def _number(source: str, name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{source}: {name} must be an integer of at least {least}, not {value!r}")
    return value


def _epsilon(source: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{source}: layer_norm_eps must be a small positive number, not {value!r}")
    return float(value)
