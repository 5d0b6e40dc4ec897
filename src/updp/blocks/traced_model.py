"""A model with the graph of each of its composite modules, and what their calls are given."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import fx, nn

from updp.blocks.modules import count_operators, is_composite
from updp.blocks.nested import Samples, join
from updp.blocks.reading.composed import combines_layers
from updp.blocks.reading.naming import site_name, why_repeated
from updp.blocks.reading.runs import has_vectors_only
from updp.blocks.tracing.any_size import trace_with_nodes
from updp.blocks.tracing.calls import record_calls
from updp.blocks.tracing.constants import constant_inputs, data_in
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.node_values import NoValues, Values
from updp.blocks.tracing.proxies import to_int
from updp.blocks.tracing.real_values import real_values
from updp.blocks.tracing.region import Region, residual_adds
from updp.blocks.tracing.state import why_stateful
from updp.blocks.tracing.trace import restored, trace_alone
from updp.blocks.tracing.whole_numbers import WholeNumbers, made_nodes, noted


class TracedModel:
    """The composite modules of a model by path, parents first, each traced alone.

    calls:        arguments of each call of a module
    larger:       the example with one sample more, and `larger_calls` those of a run on it
    graphs:       the graph of each module that could be traced, and is more than one operator
    untraceable:  the reason for each that could not
    vectors:      whether the model has nothing but vectors (N, C)
    """

    def __init__(self, model: nn.Module, example: Samples) -> None:
        self.model = model
        self.modules = {n: m for n, m in model.named_modules() if is_composite(m)}
        self.calls = record_calls(model, example, list(self.modules))
        self.vectors = has_vectors_only(model, self.calls)
        self.larger: Samples = join([example, example[:1]])
        with restored(*model.modules()):  # what forwards keep is of the calls that are traced
            self.larger_calls = record_calls(model, self.larger, list(self.modules))
        self.graphs: dict[str, fx.Graph] = {}
        self.untraceable: dict[str, str] = {}
        self._as_nodes: dict[str, WholeNumbers] = {}  # of modules traced with nodes for them
        self._constants: dict[str, str] = {}  # what makes constants of sizes, in words
        for name, module in self.modules.items():
            try:
                graph = self._trace(name)
            except NotTraceable as error:
                states = (why_stateful(module, call) for call in self.calls[name][:1])
                self.untraceable[name] = next(states, "") or str(error)
                continue
            if not name or not combines_layers(module, graph):  # else one operator, as a layer is
                self.graphs[name] = graph
        self._constant = constant_inputs(self.modules, self.graphs)

    def _trace(self, name: str) -> fx.Graph:
        """The graph of a module; one that holds for one number of samples only is the last resort.

        Raises NotTraceable if there is none.
        """
        module, calls = self.modules[name], self.calls[name]
        with noted() as found:
            graph = trace_alone(module, *calls[:1])
        if not found.calls or self._holds(name, graph):
            return graph
        other = trace_with_nodes(module, calls[0], found, partial(self._holds, name))
        if other is None:
            self._constants[name] = found.describe()
            return graph
        self._as_nodes[name] = found
        return other

    @contextmanager
    def traced_alike(self, name: str) -> Iterator[None]:
        """Context in which `trace_alone` makes nodes of what it made them of for a module."""
        if name not in self._as_nodes:
            yield
            return
        with made_nodes(self._as_nodes[name], to_int):
            yield

    def residual_adds(self, path: str) -> list[tuple[Region, str]]:
        """Residual regions of a module, each with the reason why it is no region, else empty."""
        module = self.modules[path]
        found = residual_adds(self.graphs[path], lambda t: count_operators(module.get_submodule(t)))
        return [(region, why) for region, why in found if self.has_data(path, region)]

    def has_data(self, path: str, region: Region) -> bool:
        """Whether a region of a module works on what the model is given, not on constants alone.

        A table of biases may be computed for one branch: dropped, it takes that along.
        """
        data = data_in(self.graphs[path], self._constant[path])
        return any(node.name == region.entry for node in data)

    def values(self, path: str) -> Values | NoValues:
        """Values of all nodes in each call of a module, or the reason why there are none."""
        values = self._values(path, self.graphs[path])
        if isinstance(values, NoValues) and values.wrong_graph:
            return NoValues(f"{values.reason}{self._constants.get(path, '')}")
        return values

    def _values(self, path: str, graph: fx.Graph) -> Values | NoValues:
        return real_values(self.modules[path], graph, self.calls[path], self.larger_calls[path])

    def _holds(self, path: str, graph: fx.Graph) -> bool:
        """Whether a graph computes a module's calls for every number of samples."""
        return not isinstance(self._values(path, graph), NoValues)

    def name_of(self, path: str, region: Region, count: int) -> str:
        """Name of a region of a module that has `count` of them, as a site."""
        return site_name(path, self.modules[path], self.graphs[path], region, count)

    def why_repeated(self, path: str, region: Region) -> str:
        """Why a region of a module is no site where its operators run elsewhere, too."""
        return why_repeated(self.modules[path], self.graphs[path], region)

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
