"""A language model learns 16 languages that it hardly knows: data as unlike as in the speech study, without speech."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesaic.corpora import Corpus
from moesaic.corpora.emoji_names import EmojiNames
from moesaic.studies.catalogue import language_model
from moesaic.studies.catalogue.language_model import LanguageBench
from moesaic.studies.study import Study
from moesaic.studies.usual import UP_ISO_FLOP

LANGUAGES = ("da", "et", "fi", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nl", "pl", "ru", "th", "vi", "zh")
SMOKE = ("fi", "hu", "ko")
STEPS, BATCH, WINDOW = 60, 8, 128
RATES = (1.2e-3, 2.4e-3)


@dataclass(frozen=True)
class ListsBench(LanguageBench):
    """SmolLM2 on lists of names of things, as many of each language; the layers below the MoE are frozen.

    Args:
        source: `emoji_names`, or a folder with train, validation and test.jsonl, labelled by language.
        domains: languages of the corpus `emoji_names`. joined: names of a row.
    """

    source: str = "emoji_names"
    domains: tuple[str, ...] = LANGUAGES
    window: int = WINDOW
    train: int = 80
    validation: int = 6
    test: int = 20
    sample: int = 24
    joined: int = 12

    def corpus(self) -> Corpus | str:
        return EmojiNames(self.domains, joined=self.joined) if self.source == EmojiNames.name() else self.source


def make(*, smoke: bool) -> Study:
    """Return the study; of `smoke`, three arms and a few steps."""
    study = language_model.make(smoke=smoke)
    made = replace(
        study,
        name="languages",
        question="SmolLM2 learns 16 languages that it hardly knows, from lists of names: which init helps, and does an "
        "expert for each language earn its keep?",
        bench=ListsBench(),
        arms=language_model.arms(len(LANGUAGES)),
        budget=replace(study.budget, steps=STEPS, batch_size=BATCH),
        rates=RATES,
    )
    if not smoke:
        return replace(made, references=("dense", UP_ISO_FLOP.name))
    chosen = {arm.name for arm in study.arms}
    return replace(
        made,
        arms=tuple(arm for arm in language_model.arms(len(SMOKE)) if arm.name in chosen),
        bench=ListsBench(domains=SMOKE, train=40, validation=2, test=2, sample=20),
        budget=study.budget,
        rates=study.rates,
    )
