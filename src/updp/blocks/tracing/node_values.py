"""The values of a graph's nodes in real calls, or the reason why there are none."""

from dataclasses import dataclass
from typing import Any

Values = list[dict[str, Any]]  # for each call of a module, the value of every node by name


@dataclass(frozen=True)
class NoValues:
    """Why there are no values, and whether it is because the graph is wrong."""

    reason: str
    wrong_graph: bool = False
