"""Reading of YAML that others wrote, within bounds, and short quotes of values for messages."""

import difflib
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from yaml.nodes import Node

_LARGEST = 2**18  # characters of a recipe; our largest has 800
_DEEPEST = 16  # levels of a value; a recipe has 3
_LONGEST = 1000  # characters of a single value: Python refuses to print longer whole numbers

# YAML 1.2 numbers; other text that looks like a number stays text, for the field to validate.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
}

_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, deep nesting, and surprises of YAML 1.1.

    Numbers are decimal, and a repeated key is an error. PyYAML itself reads `010` as 8, `1:30` as
    90, and takes the last of two equal keys.
    """

    _depth = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `yaml.constructor.SafeConstructor`."""
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in known:
                    raise yaml.MarkedYAMLError(
                        problem=f"{quoted(key.value)} is given twice", problem_mark=key.start_mark
                    )
                known.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """See `yaml.composer.Composer`."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):  # ten lines of these can be a billion values
            self._refuse(f"a recipe has no aliases (*{event.anchor})", event)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            self._refuse(f"a value has more than {_LONGEST:,} characters", event)
        if self._depth >= _DEEPEST:
            self._refuse(f"values lie within each other more than {_DEEPEST} deep", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[no-any-return]
        finally:
            self._depth -= 1

    def _refuse(self, problem: str, event: yaml.Event) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


_PlainLoader.yaml_implicit_resolvers = {
    letter: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in resolvers]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """Return plain data from YAML. Raises ValueError with a message of one line."""
    try:
        # Not safe_load: the loader is a safe one.
        return yaml.load(text, _PlainLoader)  # nosec B506: a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError((str(error).splitlines() or ["it is no YAML"])[0]) from error
    # PyYAML's constructors check neither dates nor the text of a tag (`!!float abc`).
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"a value is not of its kind: {error}") from error


def read_text(path: Path) -> str:
    """Return the text of a file. Raises OSError, or ValueError if it is too large or not UTF-8."""
    with path.open("rb") as file:  # a pipe is fine, /dev/zero has no end
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} bytes")
    return data.decode()


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return `did you mean ...?` with the names most like `name`, if any, each after `prefix`."""
    close = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {', '.join(prefix + other for other in close)}?" if close else ""


def no_field(path: str, names: Iterable[str]) -> str:
    """Return the message for a field such as `subnet.epoch` that its section does not have."""
    known = list(names)
    hint = did_you_mean(path.split(".")[-1], known) or f"there are {', '.join(known)}"
    return f"no field {quoted(path)}; {hint}"


def quoted(value: Any) -> str:
    """Return a user's value as text for a message, cut to a readable length."""
    return _short.repr(value)
