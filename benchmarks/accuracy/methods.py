"""The compared ways to make and train a pruned block, each as recipe settings."""

from __future__ import annotations

from dataclasses import dataclass

# An activation ends every pruned block and a removed one leaves nothing, as in `--recipe paper`.
PAPER = ("candidates.end_activation=true", "candidates.linearise=false")
UNTRAINED = ("supernet.epochs=0",)
FREE = ("subnet.norms=train",)  # BatchNorms take each batch's statistics, unlike after a fit
INHERIT = (*UNTRAINED, *FREE, "supernet.start=inherit", "subnet.start=baseline")
FIT = (*UNTRAINED, "supernet.start=fit", "subnet.start=fit")
DIRECT = ("subnet.hold=1",)  # lambda is 1 at once
BLENDED = ("subnet.gate=blend", "subnet.hold=0.75")
UPDP = UNTRAINED  # the default recipe
WHOLE = "baseline"  # the method that prunes nothing


@dataclass(frozen=True)
class Method:
    """A method by name; before training it equals the method called `untrained`."""

    name: str
    about: str
    settings: tuple[str, ...]
    untrained: str


METHODS = {
    m.name: m
    for m in (
        Method(
            "direct",
            "weights inherited, activations removed at once, as DepthShrinker does; paper's form",
            (*PAPER, *INHERIT, *DIRECT),
            "direct",
        ),
        Method(
            "progressive",
            "the paper: the same, activations and norms annealed over half of the training",
            (*PAPER, *INHERIT, "subnet.gate=anneal", "subnet.hold=0.5"),
            "direct",
        ),
        Method(
            "lines",
            "weights inherited, a removed activation leaves the best line; blended over a quarter",
            (*INHERIT, *BLENDED),
            "lines",
        ),
        Method("fit", "fitted in closed form, then trained", (*FIT, *DIRECT), "fit"),
        Method(
            "fit-progressive",
            "fitted in closed form, blended over a quarter of the training",
            (*FIT, *BLENDED),
            "fit",
        ),
        Method(WHOLE, "nothing pruned, trained the same way", FREE, WHOLE),
    )
}
