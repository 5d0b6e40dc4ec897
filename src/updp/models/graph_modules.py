"""Modules that torch.fx made, as ordinary ones: surgery sets a forward on the instance.

A `GraphModule` rebuilds itself from its graph when it is copied or pickled, and would lose it.
"""

import inspect
from types import CodeType
from typing import Any

from torch import fx, nn

from updp.blocks.rewritten import RewrittenForward

# What such a module keeps for its graph, which the code of the forward does without.
_OF_GRAPHS = vars(fx.GraphModule({}, fx.Graph())).keys() - vars(nn.Module()).keys()


class TracedModule(nn.Module):
    """A module with the code of a graph as the forward of the instance."""


class ForwardByMode:
    """The forward of a module that has a graph for training and another for evaluation."""

    def __init__(self, block: nn.Module, training: fx.Graph, evaluation: fx.Graph) -> None:
        self._block = block
        self._forwards = RewrittenForward(block, evaluation), RewrittenForward(block, training)
        self.__signature__ = inspect.signature(self._forwards[0])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code of the module's present mode."""
        return self._forwards[1 if self._block.training else 0](*args, **kwargs)

    @property
    def __code__(self) -> CodeType:
        """The code of evaluation; see `RewrittenForward`."""
        return self._forwards[0].__code__


def without_graphs(module: nn.Module) -> nn.Module:
    """Replace each `fx.GraphModule` in a module by an ordinary one; return the module's own."""
    made: dict[int, nn.Module] = {}
    for part in [*module.modules()]:
        if isinstance(part, fx.GraphModule):
            made[id(part)] = _ordinary(part)
    if made:
        for part in [*module.modules(), *made.values()]:
            for key, child in part._modules.items():  # a shared child under each of its names
                part._modules[key] = made.get(id(child), child)
    return made.get(id(module), module)


def _ordinary(traced: fx.GraphModule) -> nn.Module:
    """A module that shares children, tensors, hooks and attributes with one of torch.fx."""
    modes = {part: part.training for part in traced.modules()}
    own, graphs = traced.training, {}
    for mode in (not own, own):
        traced.train(mode)  # torchvision's extractors change to the graph of the mode
        graphs[mode] = traced.graph
    for part, mode in modes.items():  # some may be frozen in evaluation
        part.training = mode
    module = TracedModule()
    for key, value in vars(traced).items():
        if key not in _OF_GRAPHS and not isinstance(value, fx.Graph):
            vars(module)[key] = value
    codes = {graph.python_code("self").src for graph in graphs.values()}
    one = RewrittenForward(module, graphs[False])
    forward = one if len(codes) == 1 else ForwardByMode(module, graphs[True], graphs[False])
    vars(module)["forward"] = forward
    return module
