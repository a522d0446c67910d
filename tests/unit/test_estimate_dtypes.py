"""What a conversion holds in memory where the layers are of several dtypes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_outputs import CONFIG

from moesaic.convert import Conversion, Options, prepare
from moesaic.estimate.work import memory
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.spec import MoESpec


def planned(wide: str, dtype: str | None) -> Conversion:
    """Plan for a checkpoint of bfloat16 whose tensors with `wide` in their names are float32."""
    config = {**CONFIG, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    options = Options(MoESpec(4, 2), DropUpcycling(), dtype=dtype)
    infos = prepare(config, options).plan.sources
    mixed = {name: replace(info, dtype="F32" if wide in name else "BF16") for name, info in infos.items()}
    made = prepare(config, options, mixed)
    assert isinstance(made, Conversion)
    return made


@pytest.mark.parametrize("dtype", [None, "BF16", "F32"])
def test_the_widest_layer_counts(dtype: str | None) -> None:
    held = [memory(planned(wide, dtype), 1).worker for wide in ("layers.2.mlp", "mlp", "nothing")]
    assert held[0] == held[1] > held[2]
