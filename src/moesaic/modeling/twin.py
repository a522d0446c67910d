"""The tiny twin of a model: same class, same wiring, random float64 weights, and runs of it on dummy inputs."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from moesaic.lazy import torch
from moesaic.modeling.inputs import Inputs, candidates
from moesaic.modeling.tiny import Scale, tiny_config
from moesaic.quiet import quiet

PATIENCE = 10  # inputs of which the same error is taken
MAX_WEIGHTS = 40_000_000  # of a twin; more would take seconds and gigabytes for nothing


class TwinError(Exception):
    """No twin of this size could be built or run; the next scale may do."""


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, scale: Scale, dtype: torch.dtype) -> PreTrainedModel:
    """Return the twin of `cls(config)` in eval mode, no weight of it zero or one.

    Raises:
        TwinError: where the class does not take the small config, or the twin is still large.
    """
    with silent():
        try:
            small = tiny_config(config, scale)
            small._attn_implementation = small._experts_implementation = "eager"  # noqa: SLF001  # takes float64
            weights = sum(p.numel() for p in skeleton(cls, small).parameters())
            torch.manual_seed(0)
            with default_dtype(dtype):
                model: Any = cls(small) if weights <= MAX_WEIGHTS else None
        except Exception as error:
            raise TwinError(f"{type(error).__name__}: {first_line(error)}") from error
    if model is None:
        raise TwinError(f"the smallest {cls.__name__} has {weights:,} weights")
    twin: PreTrainedModel = model.to(dtype).eval()
    randomize(twin)
    return twin


def again(twin: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return another model of the same class, config and random draws, in this dtype."""
    with silent(), default_dtype(dtype):
        bare: Any = type(twin)(twin.config)
    model: PreTrainedModel = bare.to(dtype).eval()
    randomize(model)
    return model


def skeleton(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model on the meta device: all its modules, no memory."""
    with silent(), torch.device("meta"):
        model: PreTrainedModel = cls(config)
    return model


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Draw every weight, bias, norm and running statistic anew; a matrix gives outputs of about its inputs' size."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if not tensor.numel():
            continue
        if tensor.ndim >= 2:
            reach = 1.5 * (3 / max(1, tensor[0].numel())) ** 0.5  # of a uniform draw with deviation 1.5 / sqrt(fan in)
            tensor.uniform_(-reach, reach, generator=generator)
        else:
            tensor.uniform_(*((-1.0, 1.0) if name.endswith("bias") else (0.5, 1.5)), generator=generator)
    for name, buffer in model.state_dict(keep_vars=True).items():
        if isinstance(buffer, torch.nn.Parameter) or not buffer.is_floating_point():
            continue
        drawn = torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype) + 0.5
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(drawn)
        elif bool(torch.isinf(buffer).any()):  # limits of a clamp, open until a checkpoint sets them
            buffer.copy_(torch.sign(buffer) * drawn)


def run(model: PreTrainedModel) -> tuple[Inputs, list[torch.Tensor]]:
    """Return the first dummy inputs that the model takes, and its outputs.

    Raises:
        TwinError: where it takes none; says why the first few were refused.
    """
    problems: Counter[str] = Counter()
    for inputs in candidates(model):
        try:
            made = outputs(model, inputs)
            if all(bool(t.isfinite().any()) for t in made if t.numel()):
                return inputs, made
            problem = "its outputs are NaN"
        except Exception as error:  # noqa: BLE001  # any error means: not these inputs
            problem = f"{type(error).__name__}: {first_line(error)}"
        problems[problem] += 1
        if problems[problem] > PATIENCE:
            break
    raise TwinError(" / ".join(list(problems)[:3]) or "no inputs are known")


@torch.no_grad()
def outputs(model: torch.nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Return all floating-point tensors of one forward call, the random generator set anew."""
    torch.manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with silent(), default_dtype(dtype):
        return list(tensors(model(**inputs)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors inside any output, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))


def first_line(error: Exception) -> str:
    """Return the beginning of an error's text, in one line."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let tensors made in the block without a dtype have this one."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers from warning, and whatever else from printing, while twins are tried."""
    with quiet(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
