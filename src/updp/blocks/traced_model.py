"""A model with the graph of each of its composite modules, and what their calls are given."""

from torch import fx, nn

from updp.blocks.modules import count_operators, is_composite
from updp.blocks.nested import Samples, join
from updp.blocks.reading.composed import read_composed
from updp.blocks.reading.naming import site_name, why_repeated
from updp.blocks.reading.runs import has_vectors_only
from updp.blocks.tracing.calls import record_calls
from updp.blocks.tracing.constants import constant_inputs, data_in
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.real_values import Values, real_values
from updp.blocks.tracing.region import Region, residual_adds
from updp.blocks.tracing.state import why_stateful
from updp.blocks.tracing.trace import restored, trace_alone


class TracedModel:
    """The composite modules of a model by path, parents first, each traced alone.

    calls:        arguments of each call of a module
    larger:       the example with one sample more, and `larger_calls` those of a run on it
    graphs:       the graph of each module that could be traced, and is more than one operator
    untraceable:  the reason for each that could not
    vectors:      whether the model has nothing but vectors (N, C)
    """

    def __init__(self, model: nn.Module, example: Samples) -> None:
        self.modules = {n: m for n, m in model.named_modules() if is_composite(m)}
        self.calls = record_calls(model, example, list(self.modules))
        self.vectors = has_vectors_only(model, self.calls)
        self.larger: Samples = join([example, example[:1]])
        with restored(*model.modules()):  # what forwards keep is of the calls that are traced
            self.larger_calls = record_calls(model, self.larger, list(self.modules))
        self.graphs: dict[str, fx.Graph] = {}
        self.untraceable: dict[str, str] = {}
        for name, module in self.modules.items():
            try:
                graph = trace_alone(module, *self.calls[name][:1])
            except NotTraceable as error:
                states = (why_stateful(module, call) for call in self.calls[name][:1])
                self.untraceable[name] = next(states, "") or str(error)
                continue
            if (
                not name or read_composed(name, module, graph) is None
            ):  # else one operator, as a layer is
                self.graphs[name] = graph
        self._constant = constant_inputs(self.modules, self.graphs)

    def residual_adds(self, name: str) -> list[tuple[Region, str]]:
        """Residual regions of a module, each with the reason why it is none of it, or nothing."""
        module = self.modules[name]
        found = residual_adds(self.graphs[name], lambda t: count_operators(module.get_submodule(t)))
        return [(region, why) for region, why in found if self.has_data(name, region)]

    def has_data(self, name: str, region: Region) -> bool:
        """Whether a region of a module works on what the model is given, not on constants alone.

        A table of biases may be computed for one branch: dropped, it takes that along.
        """
        data = data_in(self.graphs[name], self._constant[name])
        return any(node.name == region.entry for node in data)

    def values(self, name: str) -> Values | str:
        """Values of all nodes in each call of a module, or the reason why there are none."""
        module, graph = self.modules[name], self.graphs[name]
        return real_values(module, graph, self.calls[name], self.larger_calls[name])

    def label(self, name: str, region: Region, count: int) -> str:
        """Name of a region of a module that has `count` of them, as a site."""
        return site_name(name, self.modules[name], self.graphs[name], region, count)

    def why_repeated(self, name: str, region: Region) -> str:
        """Why a region of a module is no site where its operators run elsewhere, too."""
        return why_repeated(self.modules[name], self.graphs[name], region)

    def paths(self, block: str, node: fx.Node) -> tuple[str, ...]:
        """Names that a site claims with a node: its own, and a called module's with parameters."""
        own = f"{block}#{node.name}"
        if node.op != "call_module":
            return (own,)
        path = f"{block}.{node.target}".lstrip(".")
        module = self.modules[block].get_submodule(str(node.target))
        return (own, path) if any(True for _ in module.parameters()) else (own,)

    def called(self, block: str, region: Region) -> list[str]:
        """Paths of the modules with parameters that a region of a block calls."""
        nodes = (n for n in self.graphs[block].nodes if n.name in region.inside)
        return [path for n in nodes for path in self.paths(block, n)[1:]]
