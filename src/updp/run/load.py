"""Load a merged model from its run directory, without pickle."""

from pathlib import Path

from torch import Tensor, nn

from updp import zoo
from updp.arguments import checked
from updp.blocks import find
from updp.blocks.copying import copy_module
from updp.blocks.modules import like_of, to_eval
from updp.blocks.nested import Samples
from updp.candidates import candidates_of_plan
from updp.data.example import make_example, read_example
from updp.errors import UserError
from updp.io.files import read_tensors
from updp.io.torch_state import standard_torch_state
from updp.models import load_model, num_outputs, own_copy
from updp.plan import Plan
from updp.run.integrity import check_published, explained, require_files
from updp.run.records import RunRecord
from updp.stages.context import MODEL
from updp.stages.outputs import MergedOutputs
from updp.supernet import Supernet
from updp.tasks import CLASSIFICATION


@checked()
@standard_torch_state()
def load(run: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Load the merged model of a finished run, in evaluation mode.

    `run` is a run directory, or `zoo/NAME` for one that comes with `updp` (`updp zoo` lists them).
    `model` is needed if the run was made from a module: a module of the same architecture, with
    any weights; or from a model file: its name. A model file is run only if it is named here,
    because the run directory may come from a stranger. Raises UserError.

    >>> merged = updp.load("runs/mine", model)
    >>> merged(torch.randn(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    path = _folder(run)
    with explained(path):
        return _load(path, model)


def _folder(run: str | Path) -> Path:
    name = str(run).removeprefix(zoo.PREFIX)
    if name != str(run) and name in zoo.PRUNED:
        return zoo.run_directory(name)
    if name != str(run) and name in zoo.BASELINES and not Path(run).exists():
        pruned = " and ".join(f"zoo/{other}" for other in zoo.PRUNED)
        raise UserError(f"'{run}' is a baseline, and load takes a pruned network: {pruned}")
    return Path(run)


def _load(path: Path, model: nn.Module | str | None) -> nn.Module:
    require_files(path, RunRecord.FILE, Plan.FILE, MODEL)
    check_published(path, Plan.FILE, MODEL)
    record = RunRecord.read(path)
    if model is None:
        if not record.model:
            raise UserError(f"'{path}' was made from a module: pass it, load(run, model=...)")
        model = record.trusted("model", path)
    if isinstance(model, str):
        model = load_model(model, num_classes=record.built_with)
    else:
        model = own_copy(model)
    stored = read_example(path / "sites")
    if record.task == CLASSIFICATION.name:  # raises UserError for unsuitable inputs
        num_outputs(model, record.input_shape if stored is None else stored)
    example = make_example(stored, record.input_shape, 2)
    merged = skeleton(model, example, Plan.read(path))
    tensors, _ = read_tensors(path / MODEL)
    try:
        own = {n: v for n, v in merged.state_dict().items() if not isinstance(v, Tensor)}
        merged.load_state_dict(own | tensors)
    except RuntimeError as error:
        raise UserError(
            f"the weights in '{path}' do not fit this {type(model).__name__}: "
            "it is not the model that was pruned"
        ) from error
    if known := MergedOutputs.read_if_there(path):
        known.check(
            merged,
            example.to(like_of(merged).device),
            f"the merged model of '{path}' gives other outputs with this {type(model).__name__} "
            "({by} apart): its code or its settings are not those of the model that was pruned",
        )
    return merged


def skeleton(baseline: nn.Module, example: Samples, plan: Plan) -> nn.Module:
    """The merged model's structure under `plan`, with weights still to be loaded.

    `example` has two inputs; `baseline` is copied. Raises UserError if the plan names a site that
    the model does not have.
    """
    model = to_eval(copy_module(baseline))
    findings = find(model, example.to(like_of(model).device))
    net = Supernet(model, findings, candidates_of_plan(plan, findings)).eval()
    net.choose(plan.choices)
    return net.merged()
