"""Loading a model so that nothing is left to chance: every weight finds its place, or a message says which do not."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moesaic.errors import CertificateError, MoesaicError
from moesaic.lazy import torch
from moesaic.modeling.sections import PREFIX, SECTION
from moesaic.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FURTHER: ContextVar[Mapping[str, Any]] = ContextVar("arguments of from_pretrained", default={})  # noqa: B039  # never changed


@contextmanager
def loading_with(**arguments: Any) -> Iterator[None]:
    """Let every model that is loaded inside the block be loaded with further arguments of `from_pretrained`.

    So whoever knows how a model is to be cut among processes need not be the one who loads it.
    """
    token = _FURTHER.set(arguments)
    try:
        yield
    finally:
        _FURTHER.reset(token)


def further_arguments() -> Mapping[str, Any]:
    """Return what `loading_with` was given, for whoever calls `from_pretrained` itself."""
    return _FURTHER.get()


def load(
    folder: Path | str, config: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load a model from a folder: a stock class, or one with MoE layers that moesaic spliced in.

    Code in the folder is never run; spliced layers are moesaic's own.

    Args:
        config: taken instead of the folder's config.json. dtype: of the weights; None: as they are stored.

    Raises:
        CertificateError: if any weight is missing, unexpected or of another shape, as nothing may be left to chance.
    """
    if config is None:
        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CertificateError(f"{folder}: a model folder must hold a config.json. Got: {error}.") from None
    assert config is not None
    return loaded(*model_class(config), Path(folder), dtype)


def model_class(config: Mapping[str, Any]) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Return the class that a config.json names, and the config as that class reads it.

    A model with MoE layers of ours inside a stock class gets the class that splices them; code in its folder is never
    run.
    """
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    name = config["architectures"][0]
    stock = name.removeprefix(PREFIX) if SECTION in config else name
    if not isinstance(getattr(transformers, stock, None), type):
        raise CertificateError(
            f"{stock}: the installed transformers must have this class. Got {transformers.__version__}, which has not. "
            "Install a newer one, or pass --no-certify."
        )
    with _loading(name), TemporaryDirectory() as folder:  # read like the config of any folder, though not on disk yet
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        if SECTION not in config:
            return getattr(transformers, stock), transformers.AutoConfig.from_pretrained(folder)
        from moesaic.modeling import spliced  # noqa: PLC0415  # imports transformers

        cls: Any = spliced.spliced_class(stock)
        return cls, cls.config_class.from_pretrained(folder)


def loaded(
    cls: type[PreTrainedModel],
    settings: PreTrainedConfig,
    weights: Path | dict[str, torch.Tensor],
    dtype: torch.dtype | None,
) -> PreTrainedModel:
    """Load a class from a folder or from named tensors; every weight must find its place."""
    folder, state = (None, weights) if isinstance(weights, dict) else (weights, None)
    with _loading(cls.__name__), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        made: Any = cls.from_pretrained(
            folder,
            config=settings,
            state_dict=state,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            **_FURTHER.get(),
        )
    model: PreTrainedModel = made[0]
    # A class may ask for tensors without elements (a shared expert of width 0); none are stored, and none are missed.
    empty = {name for name, tensor in model.state_dict().items() if not tensor.numel()}
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, set(made[1][kind]) - empty))[:3] for kind in kinds}
    if any(wrong.values()):
        got = {kind: names for kind, names in wrong.items() if names}
        raise CertificateError(f"{cls.__name__}: every weight must find its place in the class. Got {got}.")
    model.eval()
    return model


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn whatever transformers raises into one message."""
    try:
        with quiet():
            yield
    except MoesaicError:
        raise
    except Exception as error:  # strict configs and safetensors have kinds of their own, without a common base
        said = " ".join([f"{type(error).__name__},", *re.sub(r"\b\w+Error: ", "", str(error)).split()])
        raise CertificateError(
            f"{name}: the installed transformers must load the model. It does not: {said}"
        ) from error
