"""The study `language_model` on 4 and 16 times its text, each row read at most once, with 4 times the held-out text.

    moesaic study benchmarks/more_text.py:study --out STUDY --workers 2 --precision bfloat16 \
        --arms dense iso-flop recommended
    moesaic study benchmarks/more_text.py:longer --out STUDY --workers 2 --precision bfloat16 \
        --arms dense iso-flop recommended

Their results stand in docs/studies/language_model: more_text.md, longer.md.
"""

from __future__ import annotations

from dataclasses import replace

from moesaic import studies
from moesaic.studies import Study
from moesaic.studies.catalogue.language_model import LanguageBench


def study(*, smoke: bool) -> Study:
    """Return the study on 204,800 tokens."""
    return _of(200, 240, (3e-4, 1e-3), "more_text", smoke=smoke)


def longer(*, smoke: bool) -> Study:
    """Return it on 819,200 tokens, at the rate that all methods tried prefer at 204,800."""
    return _of(800, 960, (1e-3,), "longer", smoke=smoke)


def _of(steps: int, rows: int, rates: tuple[float, ...], name: str, *, smoke: bool) -> Study:
    made = replace(studies.find("language_model", smoke=smoke), name=name)
    if smoke:
        return made
    return replace(
        made,
        bench=LanguageBench(train=rows, validation=4, test=12),
        budget=replace(made.budget, steps=steps, batch_size=8),
        rates=rates,
        seeds=(0,),
    )
