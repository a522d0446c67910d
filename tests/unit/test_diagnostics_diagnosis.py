"""A diagnosis and its JSON are the same thing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import moesaic
from moesaic.diagnostics.diagnosis import (
    AudioSample,
    Diagnosis,
    Geometry,
    ImageSample,
    LayerDiagnosis,
    Sample,
    Shown,
    TextSample,
    WeightSimilarity,
)

PAIRS = ((1.0, -0.25), (-0.25, 1.0))
ROUTES = {"layers.3.mlp": ((1,), (0,))}
LAYER = LayerDiagnosis(
    path="layers.3.mlp",
    number=3,
    experts=2,
    top_k=1,
    tokens=2,
    entropy=0.1 + 0.2,
    top1=1 / 3,
    margin=1e-9,
    load_cv=0.0,
    max_violation=0.0,
    information=None,
    dead=(1,),
    load=(0.5, 0.5),
    load_by_group={"<b>": (1.0, 0.0)},
    confidence_histogram=(0.0,) * 20,
    coactivation=PAIRS,
    router_condition=None,
    diversity=1.25,
    weight_similarity=WeightSimilarity(None, PAIRS, (0.5, 1.0), 0.0),
    output_cosine=None,
    cka=PAIRS,
    peak=(3.5, 0.0),
    geometry=Geometry(((0.1, 0.2), (0.3, 0.4)), ((0.5, 0.6, 1, 0), (0.5, 0.6, 0, -1)), (0.75, 0.125)),
    top_tokens=((("</script>", 1.0, 3), ("\u202eemoji \U0001f600", 0.5, 1)), ()),
)
MADE = Diagnosis(
    model="m",
    kind="image-text",
    experts={"layers.3.mlp": 2},
    top_k={"layers.3.mlp": 1},
    data=Shown("d", 2, 1, ("<b>",)),
    layers=(LAYER, replace(LAYER, path="layers.7.mlp")),
    sample=Sample(
        (TextSample("t", ("a", " b"), ROUTES, {"layers.3.mlp": ((1.0,), (1.0,))}),),
        (ImageSample("i", "data:,", (1, 2), ROUTES),),
        (AudioSample("s", 0.5, (0.0, 1.0), (), ROUTES),),
    ),
)


def test_round_trip_is_exact() -> None:
    text = json.dumps(MADE.to_json(), allow_nan=False)
    assert Diagnosis.from_json(json.loads(text)) == MADE
    assert json.dumps(Diagnosis.from_json(json.loads(text)).to_json()) == text


def test_json_has_the_shape_that_pages_read() -> None:
    made = MADE.to_json()
    assert made["schema"] == "moesaic.diagnosis/1"
    assert made["layers"][0]["geometry"]["tokens"] == [[0.5, 0.6, 1, 0], [0.5, 0.6, 0, -1]]
    assert made["layers"][0]["top_tokens"][0][0] == ["</script>", 1.0, 3]
    assert made["sample"]["texts"][0]["experts"] == {"layers.3.mlp": [[1], [0]]}
    assert made["sample"]["images"][0]["grid"] == [1, 2]


def test_layers_are_found_by_path() -> None:
    assert MADE.layer("layers.7.mlp").path == "layers.7.mlp"
    with pytest.raises(KeyError, match="no such layer"):
        MADE.layer("layers.4.mlp")


def changed(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(MADE.to_json(), schema="moesaic.diagnosis/9"), "schema must be 'moesaic.diagnosis/1'. Got 'moesaic.d"),
        ({}, "schema must be"),
        (changed(MADE.to_json(), kind=...), r"Diagnosis: keys must be .* missing: \['kind'\]"),
        (
            changed(MADE.to_json(), layers=[changed(MADE.to_json()["layers"][0], more=1)]),
            r"LayerDiagnosis: .*\['more'\]",
        ),
        (changed(MADE.to_json(), sample={"texts": []}), r"Sample: .*\['audio', 'images'\]"),
    ],
)
def test_other_files_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diagnosis.from_json(values)


def test_both_names_are_public() -> None:
    assert moesaic.Diagnosis is Diagnosis
    assert callable(moesaic.diagnose)
