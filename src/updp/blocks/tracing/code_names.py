"""Let the calls of a built-in in a function's code go to another name."""

import dis
import sys
from types import CodeType

_LOAD, _EXTENDED = dis.opmap["LOAD_GLOBAL"], dis.opmap["EXTENDED_ARG"]
_CALLED = 1  # bit of the load of a global that is called next
_IS_KNOWN = sys.version_info < (3, 15)  # a later Python may load globals otherwise


def with_calls_of(code: CodeType, name: str, other: str) -> CodeType:
    """Code in which calls of the global `name` call `other`; other uses of `name` stay.

    Functions inside are changed, too. The same object is returned if there is no such call, or no
    place for a longer number: in code with more than 127 names.
    """
    inner = tuple(
        with_calls_of(c, name, other) if isinstance(c, CodeType) else c for c in code.co_consts
    )
    changed = bytearray(code.co_code)
    if name in code.co_names and _IS_KNOWN:
        _redirect(changed, code.co_names.index(name), len(code.co_names))
    same = all(a is b for a, b in zip(inner, code.co_consts, strict=True))
    if same and changed == code.co_code:
        return code
    names = (*code.co_names, other)
    return code.replace(co_code=bytes(changed), co_names=names, co_consts=inner)


def _redirect(code: bytearray, old: int, new: int) -> None:
    """Redirect calls of the global with number `old` to that with number `new`, in place."""
    argument, start = 0, 0
    for at in range(0, len(code), 2):
        argument = argument << 8 | code[at + 1]
        if code[at] == _EXTENDED:
            continue
        if code[at] == _LOAD and argument == (old << 1 | _CALLED):
            target = (new << 1 | _CALLED).to_bytes(4, "big")
            width = (at - start) // 2 + 1
            if not any(target[: 4 - width]):
                for i, byte in enumerate(target[4 - width :]):
                    code[start + 2 * i + 1] = byte
        argument, start = 0, at + 2
