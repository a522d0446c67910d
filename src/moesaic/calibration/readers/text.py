"""Texts through the model's own tokenizer, cut into windows that it can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moesaic.calibration.data import Item, Kind
from moesaic.calibration.readers.base import Example, Feed, label_rows, padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOW = 512
"""Tokens of a window unless the model reads fewer: attention's cost is then small beside that of the FFNs."""
PROBE = "a"


@dataclass(frozen=True)
class TextReader:
    """Makes windows of token ids.

    An encoder-decoder reads the same text on both sides, the decoder one token later.

    Args:
        tokenizer: of transformers. window: tokens of one example at most, its special tokens included.
        pad: the id that fills a batch up; never counted.
        decoder_start: the id a decoder begins with; None where the model has no decoder of its own.
    """

    tokenizer: Any
    window: int
    pad: int
    decoder_start: int | None = None
    kind: ClassVar[Kind] = "text"

    @classmethod
    def of(cls, tokenizer: Any, config: Any, window: int = WINDOW, skipped: int = 0) -> TextReader:
        """Return the reader of a model with this config, whose positions are fewer by those `skipped`."""
        text = config.get_text_config()
        reach = [
            getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_target_positions")
        ]
        places = [int(limit) - skipped for limit in reach if limit]
        limits = [int(limit) for limit in (*places, tokenizer.model_max_length) if limit and limit > 1]
        start = getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None
        if config.is_encoder_decoder and start is None:
            start = text.bos_token_id or 0
        pad = next((one for one in (tokenizer.pad_token_id, text.pad_token_id, text.eos_token_id) if _is_id(one)), 0)
        return cls(tokenizer, min([window, *limits]), pad, start)

    def examples(self, item: Item) -> Iterator[Example]:
        if item.text is None or not item.text.strip():
            return
        ids = self.ids(item.text)
        prefix, suffix = self.special()
        room = max(self.window - len(prefix) - len(suffix), 1)
        for start in range(0, len(ids), room):
            whole = (*prefix, *ids[start : start + room], *suffix)
            yield Example(item.name, self.kind, len(whole), whole)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def special(self) -> tuple[list[int], list[int]]:
        """Return the special tokens that stand before and behind a text."""
        bare, whole = self.ids(PROBE), self.tokenizer(PROBE)["input_ids"]
        place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
        return ([], []) if place is None or not bare else (whole[:place], whole[place + len(bare) :])

    def feed(self, examples: Sequence[Example]) -> Feed:
        ids_BT, real_BT = padded([example.ids for example in examples], self.pad)
        inputs = {"input_ids": ids_BT, "attention_mask": real_BT.long()}
        if self.decoder_start is not None:
            shifted_BT = ids_BT.roll(1, dims=1)
            shifted_BT[:, 0] = self.decoder_start
            inputs |= {"decoder_input_ids": shifted_BT, "decoder_attention_mask": real_BT.long()}
        return Feed(self.kind, inputs, label_rows(examples), real_BT)


def skipped_positions(model: PreTrainedModel) -> int:
    """Return how many of its positions a model gives to no token.

    RoBERTa and its kin count from the place behind the pad's, which their table of positions has as `padding_idx`.
    """
    tables = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    pads = [pad for table in tables if (pad := getattr(table, "padding_idx", None)) is not None]
    return max(pads, default=-1) + 1


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and value >= 0
