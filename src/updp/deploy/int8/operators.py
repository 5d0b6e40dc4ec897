"""Linear operators of a quantised graph, named by the modules that they came from."""

from torch import Tensor, nn

from updp.deploy.int8.int8_record import Int8Operator
from updp.deploy.int8.onnx_graph import Graph
from updp.deploy.int8.ranges import Array, channel_ranges, signal_to_noise, spread
from updp.plan import Plan


def describe_operators(
    graph: Graph, names: dict[str, str], new: set[str], plan: Plan
) -> list[Int8Operator]:
    """Make a row for each linear operator of a graph.

    Args:
        graph: The float graph that was quantised.
        names: Names of modules by names of weight constants.
        new: Modules that the baseline does not have.
        plan: The merged plan, to whose sites the new modules belong.
    """
    rows = []
    for operator in graph.operators():
        weight, name = graph.constants[operator.weight], names[operator.weight]
        ranges = channel_ranges(weight, operator.axis)
        rows.append(
            Int8Operator(
                name=name,
                site=_site(name, plan) if name in new else "",
                kind=operator.kind,
                channels=len(ranges),
                lowest=float(ranges.min()),
                highest=float(ranges.max()),
                spread=spread(ranges),
                signal_to_noise_per_tensor=signal_to_noise(weight),
                signal_to_noise_per_channel=signal_to_noise(weight, operator.axis),
            )
        )
    return rows


def linear_weights(net: nn.Module) -> dict[str, Array]:
    """Weights of linear operators, by the names of their modules."""
    return {
        name: weight.detach().numpy()
        for name, module in net.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1
    }


def new_operators(baseline: nn.Module, net: nn.Module) -> set[str]:
    """Modules of `net` that the baseline lacks, or has with a weight of another shape."""
    before = linear_weights(baseline)
    return {
        name
        for name, weight in linear_weights(net).items()
        if name not in before or before[name].shape != weight.shape
    }


def _site(name: str, plan: Plan) -> str:
    """The pruned site that module `name` of a merged model belongs to; empty if none.

    If the block has several sites, it is the one that the module's name begins with.
    """

    def fit(site: str) -> tuple[bool, int]:
        block, _, branch = site.partition(":")
        rest = name[len(block) + 1 :]
        return bool(branch) and rest.startswith(branch.replace(".", "_")), len(block)

    around = [site for site in plan.choices if f"{name}.".startswith(site.partition(":")[0] + ".")]
    return max(around, key=fit, default="")
