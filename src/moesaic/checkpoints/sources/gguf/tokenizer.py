"""The tokenizer that a GGUF file's vocabulary describes, rebuilt by transformers and saved beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.writer import write_json
from moesaic.errors import SourceError

DIGIT_SPLITTING = ("smollm", "starcoder", "refact", "command-r")
"""Pre-tokenizers of llama.cpp that cut out every digit before the GPT-2 pattern; transformers drops that step."""


def write_tokenizer(file: GGUFFile, config: Mapping[str, Any], out: Path) -> None:
    """Write the tokenizer and generation_config.json; a file without a vocabulary gets no tokenizer.

    Raises:
        SourceError: if transformers can't rebuild this kind of vocabulary.
    """
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    write_json(out / "generation_config.json", {"_from_model_config": True, **ids})
    if "tokenizer.ggml.model" not in file.metadata:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"{file.path.name}: its vocabulary must be of a kind that transformers can rebuild. "
            f"Got '{file.metadata['tokenizer.ggml.model']}' ({error}). Pass the model's safetensors folder or hub id."
        ) from error
    if file.metadata.get("tokenizer.ggml.pre") in DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = config["max_position_embeddings"]
    tokenizer.save_pretrained(out)
