"""The tokenizer that a GGUF file's vocabulary describes, rebuilt by transformers and saved beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.writer import write_json
from moesaic.errors import SourceError

DIGIT_SPLITTING = ("smollm", "starcoder", "refact", "command-r")
"""Pre-tokenizers of llama.cpp that cut out every digit before the GPT-2 pattern; transformers drops that step."""
LOADED_EVERYWHERE = "PreTrainedTokenizerFast"
"""The class name that transformers 4 and 5 both know; 5 writes one that 4 does not."""


def write_tokenizer(file: GGUFFile, config: Mapping[str, Any], out: Path) -> None:
    """Write the tokenizer and generation_config.json; a file without a vocabulary gets no tokenizer.

    Raises:
        SourceError: if transformers can't rebuild this kind of vocabulary.
    """
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    write_json(out / "generation_config.json", {"_from_model_config": True, **ids})
    if "tokenizer.ggml.tokens" not in file.metadata:
        return
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"{file.path.name}: its vocabulary must be of a kind that transformers can rebuild. Got "
            f"'{file.metadata.get('tokenizer.ggml.model')}' ({error}). Upgrade transformers, or pass the model's "
            "safetensors folder or hub id."
        ) from error
    if file.metadata.get("tokenizer.ggml.pre") in DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = config["max_position_embeddings"]
    tokenizer.save_pretrained(out)
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("backend", "is_local", "local_files_only")}
    write_json(out / "tokenizer_config.json", settings | {"tokenizer_class": LOADED_EVERYWHERE})
