"""Settings that every class reads alike, whatever its layers: checked, and carried over into the MoE's config."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.config import Config

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CARRIED = (*TOKEN_IDS, "dtype", "torch_dtype", "use_cache", "attention_dropout", "initializer_range")


def carried(config: Config) -> dict[str, Any]:
    """Return the settings other than dtypes, in types that every class takes: some want a float where others take 0."""
    # Not asked for by `get`: a token id of another name, as some classes have, is no misspelling.
    token_ids = {key: value for key, value in {**config.defaults, **config.values}.items() if key in TOKEN_IDS}
    for key, value in token_ids.items():
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        fits = value is None or all(isinstance(item, int) and not isinstance(item, bool) for item in ids)
        config.check(fits, key, "a token id", value)
    return {
        **token_ids,
        "use_cache": config.flag("use_cache", default=True),
        "attention_dropout": config.real("attention_dropout", 0.0),
        "initializer_range": config.real("initializer_range", 0.02),
    }
