"""Models by name: `timm/`, `torchvision/` or `zoo/NAME`, `hf/DIR`, `path/file.py:factory`."""

import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import timm
import torch
import torchvision
from torch import Tensor, nn

from updp import zoo
from updp.blocks.modules import UserCodeError, call_user_code, evaluating, like_of
from updp.blocks.nested import Samples, call
from updp.errors import UserError, reason
from updp.io.seeds import random_state
from updp.models.given import usable
from updp.models.transformers import load_classifier
from updp.models.weights import load_weights
from updp.recipe.text import did_you_mean
from updp.tasks import CLASSIFICATION, TASKS


def load_model(
    spec: str, *, weights: Path | None = None, num_classes: int | None = None, seed: int = 0
) -> nn.Module:
    """Build the model that `spec` names and load `weights` (safetensors) into it, strictly.

    Models of the zoo have weights of their own. `num_classes` is used for timm, torchvision and
    transformers; a factory decides for itself.
    Untrained weights depend only on `seed`; the caller's random states are not changed.

    Raises:
        UserError: the model is unknown, its factory fails, or the weights do not fit.
    """
    build = _builder(spec, {} if num_classes is None else {"num_classes": num_classes})
    with random_state(seed), warnings.catch_warnings():
        # torchvision advises to pass `init_weights` to GoogLeNet and Inception.
        warnings.filterwarnings("ignore", "The default weight init", FutureWarning)
        try:
            model = call_user_code(build)
        except UserCodeError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise UserError(f"model '{spec}' cannot be built: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model '{spec}' is a {type(model).__name__}: the factory must return an nn.Module"
        )
    module = usable(model, f"model '{spec}'")
    if weights is None and spec.startswith(zoo.PREFIX):
        weights = zoo.weights_of(spec.removeprefix(zoo.PREFIX))
    if weights is not None:
        load_weights(module, weights, spec)
    return module


def is_code(spec: str) -> bool:
    """Whether a name is that of a Python file, which is run to build the model."""
    return spec.endswith(".py") or spec.rpartition(":")[0].endswith(".py")


def is_same_code(spec: str, other: str) -> bool:
    """Whether two names mean the same callable in a Python file, from any working directory."""
    return is_code(spec) and Path(spec).name == Path(other).name


def hash_state(module: nn.Module) -> str:
    """Sha256 of the names, dtypes, shapes and bytes in the state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):  # an "extra state" may be any object
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_frozen(module: nn.Module) -> str:
    """Sha256 of the names of the parameters that are not trained; empty if all are."""
    names = sorted(name for name, p in module.named_parameters() if not p.requires_grad)
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""


def num_outputs(model: nn.Module, inputs: tuple[int, ...] | Samples) -> int:
    """Number of classes K of a model that maps zeros (1, *shape), or N `inputs`, to (N, K).

    Training modes are restored.

    Raises:
        UserError: the model fails on such images, or its output has another shape.
    """
    if isinstance(inputs, tuple):
        inputs = torch.zeros(1, *inputs).to(like_of(model))
    else:
        inputs = inputs.to(like_of(model).device)
    shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else f"{len(inputs)} samples"
    try:
        with torch.no_grad(), evaluating(model):
            returned = call_user_code(call, model, inputs)
    except UserCodeError as error:
        raise UserError(f"the model fails on an input of {shape}: {error}") from error
    output: Tensor = CLASSIFICATION.outputs(returned)
    if output.ndim != 2 or len(output) != len(inputs):
        raise UserError(
            f"the model maps {shape} to {tuple(output.shape)}, and a classifier to (N, classes): "
            f"give another task by --set task=NAME, in Python task=NAME ({', '.join(TASKS)}), or "
            "there one of your own"
        )
    return output.shape[1]


def _builder(spec: str, options: dict[str, int]) -> Callable[[], object]:
    path, _, factory = spec.rpartition(":")
    if is_code(spec):  # first, because the file may be in a folder called timm
        if not path.endswith(".py"):  # a file without a factory
            path, factory = spec, ""
        return lambda: _from_file(Path(path).expanduser(), factory)
    library, _, name = spec.partition("/")
    if library == "hf":
        return lambda: load_classifier(Path(name).expanduser(), **options)
    if library == "zoo":
        if name not in zoo.BASELINES:
            raise _unknown(spec, name, zoo.BASELINES)
        return lambda: zoo.build(name)
    if library == "timm":
        if not timm.is_model(name):
            raise _unknown(spec, name, timm.list_models())
        return lambda: timm.create_model(name, pretrained=False, **options)
    if library == "torchvision":
        # Only classifiers, because builders of detectors download backbones without being asked.
        names = torchvision.models.list_models(module=torchvision.models)
        if name not in names:
            raise _unknown(spec, name, names)
        return lambda: torchvision.models.get_model(name, weights=None, **options)
    raise UserError(
        f"model '{spec}': write timm/NAME, torchvision/NAME, hf/DIR, zoo/NAME or "
        "path/file.py:factory"
    )


def _unknown(spec: str, name: str, names: Iterable[str]) -> UserError:
    library = spec.partition("/")[0]
    hint = did_you_mean(name.partition(".")[0], names, f"{library}/") or _where(spec)
    return UserError(f"model '{spec}' is unknown: {hint}")


def _where(spec: str) -> str:
    is_ours = spec.startswith(zoo.PREFIX)
    return "`updp zoo` lists them" if is_ours else "see the library's list_models()"


def _from_file(path: Path, name: str) -> object:
    if not path.is_file():
        raise UserError(f"model file '{path}' is not there: check the path")
    with _importable(path.parent):
        module = _import(path)
        factory = getattr(module, name, None)
        if not callable(factory):
            factories = [
                key
                for key, value in vars(module).items()
                if not key.startswith("_")
                and callable(value)
                and getattr(value, "__module__", None) == module.__name__
            ]
            known = f"it has {', '.join(factories) or 'none'}"
            if not name:
                raise UserError(f"'{path}' is a file: name its factory, {path}:FACTORY; {known}")
            raise UserError(f"'{path}' has no factory '{name}': {known}")
        return factory()


def _import(path: Path) -> ModuleType:
    # A private name, so that the user's `models.py` and other modules do not shadow each other.
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_updp_{path.stem}_{key}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and torch.export look up their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        ends = isinstance(error, SystemExit)  # a script exits at its end
        raise UserError(
            f"model file '{path}' cannot be imported: {reason(error)}"
            + ('; put what it runs under `if __name__ == "__main__"`' if ends else "")
        ) from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Context in which a model file can import its neighbours, as it can when run as a script."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
