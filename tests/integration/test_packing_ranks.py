"""Whether documents are packed does not depend on how processes share the model, nor does what is learned then."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration import calibrating
from tests.integration.packing_ranks import ASKED, TRAINED
from tests.integration.pico import save_text
from tests.integration.two_processes import two_processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("packing")
    for name in ("llama", "granite4"):
        save_text(work / name, name)
    calibrating.save_tokenizer(work / "llama")
    two_processes("packing_ranks", work)
    return json.loads((work / "found.json").read_text())


def test_a_model_that_is_cut_among_processes_is_tried_as_well(found: Any) -> None:
    """Granite 4's attention here looks at no positions, which its kinds of layers do not tell."""
    assert found["separates"] == {f"{way} {name}": name == "llama" for way, name in ASKED}


def test_having_been_tried_it_trains_the_same(found: Any) -> None:
    one, other = (dict(found["losses"][way]) for way in TRAINED)
    # Float32 sums over processes in another order; weights that stood still would be off by 3e-2.
    assert other == pytest.approx(one, abs=1e-5)
