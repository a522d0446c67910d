"""Tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.calibration.data import Source
from moesaic.errors import EvaluationError
from moesaic.evaluation.base import EvaluationTask, Opened, Place
from moesaic.evaluation.faults import as_evaluation
from moesaic.evaluation.harness import open_harness
from moesaic.evaluation.intervals import Record
from moesaic.training.tasks.models import demand, generates_text, open_model


@dataclass(frozen=True)
class LmEval(EvaluationTask):
    """Runs tasks of the Language Model Evaluation Harness: its prompts, data and scoring, our intervals.

    Each document becomes a record, so that two models are compared document by document; "all" is over documents, not
    over tasks. What lm-eval computes from all documents at once (BLEU, F1) has the interval of its standard error.
    Needs `pip install 'moesaic[harness]'`; most of lm-eval's own tasks fetch their data from a hub.

    Reference: Gao et al. 2021, A framework for few-shot language model evaluation, doi 10.5281/zenodo.5371628.
    Deviates: intervals are our bootstrap wherever sums over documents make the metric.

    Args:
        tasks: names of tasks or groups, joined by commas.
        num_fewshot: examples before each question; as the task has it if left out.
        limit: documents of each task, from the first; all if left out.
        include_path: folder of further tasks, YAML files that may name data on this disk.
        chat_template: put prompts into the model's chat template.
    """

    tasks: str = ""
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    chat_template: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("num_fewshot", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"lm_eval: {name} must be {low} or more. Got {value}.")

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load the model and the tasks.

        Raises:
            EvaluationError: where lm-eval is missing, the model predicts no text, or a task is unknown or has no data.
        """
        names = [one.strip() for one in self.tasks.split(",") if one.strip()]
        if not names:
            raise EvaluationError("lm_eval: tasks must be named. Got none. Pass --tasks NAME,NAME.")
        if data is not None:
            raise EvaluationError("lm_eval: tasks must bring their own data. Got further data. Name it in their YAML.")
        with as_evaluation():
            model = open_model(place.folder).to(place.device)  # type: ignore[arg-type]  # of its stubs
            does = "predict the next token of a text"
            demand(model, generates_text(model), "lm_eval", does, "Take a ...ForCausalLM model")
        harness = open_harness(
            names,
            self.include_path,
            place,
            model,
            limit=self.limit,
            shots=self.num_fewshot,
            chat=self.chat_template,
        )
        documents = harness.documents()
        owners = list(documents.values())

        def measure(places: Sequence[int]) -> list[Record]:
            return harness.records(owners[places[0]])

        batches = [[place for place, owner in enumerate(owners) if owner == name] for name in harness.tasks]
        return Opened(list(documents), measure, harness.metrics(), batches, harness.further)
