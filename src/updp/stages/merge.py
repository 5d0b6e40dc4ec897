"""Stage 4: merge the subnet by reparameterisation, verify it, and write the plain model.

`run/result.py` measures both models and writes `result.json`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from updp.io.files import write_tensors
from updp.stages.checks import Check, Checks
from updp.stages.context import MODEL, Context, StageKey
from updp.stages.outputs import MergedOutputs
from updp.stages.verify import PARTS, verify
from updp.supernet import Supernet


class MergeKey(StageKey):
    """The tolerances of the verification."""

    FILE: ClassVar[str] = "merge/key.json"
    merge: dict[str, Any]  # largest relative L2 errors that are allowed, by precision


def make_key(context: Context) -> MergeKey:
    """The key of this stage."""
    return MergeKey(merge=context.recipe.merge.decisive())


def run(context: Context) -> tuple[nn.Module, list[Check]]:
    """Write `model.safetensors`, `checks.json` and `outputs.json`.

    Returns the merged model and its checks.

    Raises MergeError, and writes no model, if the merged model differs from the trained one.
    """
    net = context.load_weights(context.net, "subnet")
    model, checks = merge(context, net, context.found_plan().choices)
    if not context.task.is_ragged:
        MergedOutputs.of(model, context.example(2)).write(context.root)
    return model, checks


def merge(
    context: Context, net: Supernet, choices: Mapping[str, str]
) -> tuple[nn.Module, list[Check]]:
    """Merge the trained net under a plan's `choices`; see `run`."""
    net.eval()
    net.choose(choices)
    net.set_lambda(1.0)
    images = context.feed.calibration()[0][:16]
    context.progress.begin("merge: verifying", PARTS)
    checks = verify(
        net, images, context.recipe.merge, tick=context.progress.advance, task=context.task
    )
    model = net.merged()
    Checks(rows=tuple(checks)).write(context.root)
    state = model.state_dict()  # an "extra state" may be any object
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    write_tensors(context.folder("merge") / MODEL, tensors)
    return model, checks
