"""The study `language_model` on four times its text, each row read at most once, with four times the held-out text.

    moesaic study benchmarks/more_text.py:study --out STUDY --workers 2 --precision bfloat16

Its result stands in docs/studies/language_model/more_text.md.
"""

from __future__ import annotations

from dataclasses import replace

from moesaic import studies
from moesaic.studies import Study
from moesaic.studies.catalogue.language_model import LanguageBench

ARMS = ("dense", "iso-flop", "recommended")


def study(*, smoke: bool) -> Study:
    """Return 204,800 tokens of 14 domains, for dense training, the control and the recommended recipe."""
    made = replace(studies.find("language_model", smoke=smoke), name="more_text")
    if smoke:
        return made
    return replace(
        made,
        bench=LanguageBench(train=240, validation=4, test=12),
        arms=tuple(arm for arm in made.arms if arm.name in ARMS),
        budget=replace(made.budget, steps=200, batch_size=8),
        rates=(3e-4, 1e-3),
        seeds=(0,),
    )
