"""Texts that a model writes, and what the references cost it. B rows, T tokens, P tokens of a prompt, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from moesaic.lazy import torch
from moesaic.training.tasks.models import UNSEEN

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Writer:
    """Lets a model go on from prompts, greedily or by beam search.

    Nothing is forced, suppressed or penalised, whatever its generation_config says.

    Args:
        tokenizer: of texts. beams: 1 is greedy. longest: new tokens of a text, at most.
    """

    model: PreTrainedModel
    tokenizer: Any
    beams: int
    longest: int

    def write(self, prompts_BP: torch.Tensor, longest: int, **given: Any) -> list[str]:
        """Return what the model writes behind prompts of equal length: of a decoder the first line, else all on one.

        Args:
            longest: new tokens that the model has room for. given: what else its forward takes, such as
                `encoder_outputs` (prompts are then the decoder's) and masks.
        """
        from transformers import GenerationConfig, GenerationMixin  # noqa: PLC0415  # seconds of import

        ends = self._ends()
        config = GenerationConfig(
            num_beams=self.beams,
            do_sample=False,
            max_new_tokens=min(self.longest, longest),
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else None,  # stands behind an end alone, and is cut off with it
            decoder_start_token_id=self.model.config.to_dict().get("decoder_start_token_id"),
        )
        two = bool(self.model.config.is_encoder_decoder)
        name = "decoder_input_ids" if two else "input_ids"
        # Of the mixin itself, as Whisper's own cuts long recordings into windows and decides on its prompt.
        with self._as_it_is():
            found: Any = GenerationMixin.generate(self.model, generation_config=config, **{name: prompts_BP}, **given)  # type: ignore[arg-type, unused-ignore]
        new_BT = found[:, prompts_BP.shape[1] :].tolist()
        written = [list(takewhile(lambda one: one not in ends, row)) for row in new_BT]
        texts = [str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in written]
        return [one_line(text if two else text.partition("\n")[0]) for text in texts]

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        """Keep what the model's own generation_config forbids, forces and penalises out of what is written."""
        from transformers import GenerationConfig  # noqa: PLC0415  # seconds of import

        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            yield
        finally:
            self.model.generation_config = own

    def _ends(self) -> list[int]:
        """Return the tokens that end a text, by tokenizer and model."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        every = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        return sorted({one for one in every if one is not None})


def costs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> list[tuple[float, int]]:
    """Return what the labels of each row cost, in nats, and how many count."""
    nats_BT = torch.nn.functional.cross_entropy(
        logits_BTV.float().transpose(1, 2), labels_BT, ignore_index=UNSEEN, reduction="none"
    )
    counts_B = (labels_BT != UNSEEN).sum(1).tolist()
    return list(zip(nats_BT.double().sum(1).tolist(), counts_B, strict=True))


def one_line(text: str) -> str:
    r"""Return a text without line breaks, so that it can stand in a file of one text a line.

    >>> one_line(" a\nb ")
    'a b'
    """
    return " ".join(text.split("\n")).replace("\r", " ").strip()
