"""The forward of a block after surgery: generated code on the user's own object."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import keyword
import linecache
import re
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import fx, nn

from updp.blocks.tracing.contexts import contexts_of, within_contexts

_State = tuple[nn.Module, str, str, dict[str, str], dict[str, Any]]
_numbers = itertools.count()
_KEYWORD = re.compile(rf"((?:self|getattr\([^()]*\))(?:\.\w+)*?)\.({'|'.join(keyword.kwlist)})\b")


class RewrittenForward:
    """A graph's code as the `forward` of one block, set on the instance.

    So the block keeps the user's class, attributes, methods and hooks. Unlike a bound method of
    generated code it can be pickled, and it follows a copy of the block.

    `block` is the module whose children the code uses, `code` the generated source.
    """

    def __init__(self, block: nn.Module, graph: fx.Graph) -> None:
        written = graph.python_code("self")
        names = written.globals
        modules = {n: v.__name__ for n, v in names.items() if isinstance(v, ModuleType)}
        others = {n: v for n, v in names.items() if n not in modules}
        if any(map(contexts_of, graph.nodes)):
            modules["torch"] = torch.__name__
        source = within_contexts(_spelt(written.src), graph)
        self.__setstate__((block, type(block).__name__, source, modules, others))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph's code on the block."""
        return self._function(self.block, *args, **kwargs)

    @property
    def __globals__(self) -> Any:
        """Attribute that torch.jit.script reads first from a function, before its source file.

        Raises AttributeError, with a message that says what works instead.
        """
        raise AttributeError(
            f"torch.jit.script does not read the forward of a pruned {self._label}: "
            "take torch.jit.trace or torch.export"
        )

    @property
    def __code__(self) -> CodeType:
        """The generated code; torch.export records its place for the forward of a whole model."""
        return self._function.__code__  # type: ignore[no-any-return, attr-defined]

    def __getstate__(self) -> _State:
        return self.block, self._label, self.code, self._modules, self._others

    def __setstate__(self, state: _State) -> None:
        self.block, self._label, self.code, self._modules, self._others = state
        # Modules are stored by name, because they cannot be pickled.
        found = {name: importlib.import_module(key) for name, key in self._modules.items()}
        self._function = _compiled(self._label, self.code, found | self._others)
        # torch.export and others read the names of the arguments.
        signature = inspect.signature(self._function)
        self.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenForward:
        memo[id(self)] = copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        copied.block = copy.deepcopy(self.block, memo)
        return copied


class GraphPart(fx.GraphModule):
    """A module of a graph that is called as any other: torch.fx's own prints where it fails."""

    def recompile(self) -> Any:
        """Write the forward, in its contexts, and leave out the `__call__` around it."""
        code, kind = super().recompile(), type(self)
        del kind.__call__
        if any(map(contexts_of, self.graph.nodes)):
            source = within_contexts(code.src, self.graph)
            kind.forward = _compiled(kind.__name__, source, {**code.globals, "torch": torch})
        return code


def _spelt(source: str) -> str:
    """Repair generated source: fx writes `self.if(x)` for a child named like a keyword."""
    while (spelt := _KEYWORD.sub(r'getattr(\1, "\2")', source)) != source:
        source = spelt
    return source


def _compiled(label: str, source: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Compile generated source to its function `forward`, such that tracebacks show the source."""
    file = f"<updp {label} {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    # torch.fx generated the source from a graph in memory; no text of a file gets here.
    exec(compile(source, file, "exec"), names)  # nosec B102
    function: Callable[..., Any] = names["forward"]
    return function
