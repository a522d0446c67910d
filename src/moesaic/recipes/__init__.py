"""Complete runs as functions: one file, one function of its name, which returns a `Recipe`.

Each takes `(model, data, out, *, ...)`; what stands behind the star can be given on the command line, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

from moesaic.errors import TrainingError, did_you_mean
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
LOSSES = (LoadBalancing(weight=1e-2), RouterZ(weight=1e-3))
"""Those of SPRI (arXiv 2606.16456), and of most MoEs."""


def names() -> tuple[str, ...]:
    """Return the names of all recipes that come with moesaic.

    >>> names()[0]
    'continued_pretraining'
    """
    return tuple(info.name for info in pkgutil.iter_modules(__path__))


def find(name: str) -> MakeRecipe:
    """Return a recipe by its name, or a user's own by `path/to/file.py:function`.

    Raises:
        TrainingError: where there is none of this name.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return _of_file(Path(path).expanduser(), function)
    if name not in names():
        raise TrainingError(
            f"recipe: it must be one of {', '.join(names())}, or path/to/file.py:function. Got '{name}'."
            f"{did_you_mean(name, names())}"
        )
    found: MakeRecipe = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    return found


def _of_file(path: Path, function: str) -> MakeRecipe:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise TrainingError(f"{path}: the file of the recipe must exist. Got no such file. Check the path.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"}
    if function not in own:
        raise TrainingError(
            f"{path}: it must have the function that is named behind the colon. Got '{function}'."
            f"{did_you_mean(function, own)} Write {path}:NAME."
        )
    found: MakeRecipe = vars(module)[function]
    if list(inspect.signature(found).parameters)[:3] != ["model", "data", "out"]:
        raise TrainingError(
            f"{path}:{function}: a recipe must be a function of (model, data, out, *, ...). Got "
            f"{inspect.signature(found)}. See moesaic/recipes."
        )
    return found
