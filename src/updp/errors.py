"""Errors that users see, each as one line."""


class UserError(ValueError):
    """Something that the user can put right: one line on the command line, exit code 2.

    >>> try:
    ...     updp.Budget.parse("blocks=many")
    ... except updp.UserError as error:
    ...     print(error)
    budget 'blocks=many' is not understood: write blocks=9 (a whole number), or latency, ...
    """


class MergeError(RuntimeError):
    """A merged model does not compute what was trained; nothing is written.

    >>> try:
    ...     pruned = updp.prune(model, "digits", recipe, out="runs/mine")
    ... except updp.MergeError as error:  # a bug in updp, or weights with infinities
    ...     print(error)
    """


class ExportError(RuntimeError):
    """An exported file does not compute what the merged model does; it is removed.

    >>> try:
    ...     records = updp.export("runs/mine", "safetensors")
    ... except updp.ExportError as error:  # the message names the format and the largest error
    ...     print(error)
    """


class ProcessLostError(RuntimeError):
    """Another process of the run has ended before its work was done."""


def needs_extra(what: str, package: str | None, extra: str) -> UserError:
    """The error for a missing optional package, with the command that installs it."""
    return UserError(f"{what} needs {package}: pip install 'updp[{extra}]'")


def reason(error: BaseException) -> str:
    """Type and first line of a foreign error, as `KeyError: 'x'`, to quote in a `UserError`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
