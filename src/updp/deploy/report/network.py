"""The sites of the network in order, each with its new form and cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from updp.candidates import Offer
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import amount, digits, error
from updp.supernet import FitRow

KINDS = {  # kinds of boxes with their words; each kind has its own shape and colour
    "keep": "kept",
    "one": "one operator",
    "two": "several operators",
    "fuse": "paths fused",
    "drop": "branch dropped",
    "fold": "norm folded",
    "narrow": "fewer channels",
    "other": "another candidate",
}

_LOOKS = {  # kind of box by kind of candidate
    "attention": "narrow",
    "drop": "drop",
    "fold": "fold",
    "fuse": "fuse",
    "linear": "one",
    "narrow": "narrow",
}


@dataclass(frozen=True)
class Block:
    """A site and its new form."""

    site: str
    became: str  # key of `KINDS`
    label: str
    offer: Offer | None  # the chosen offer; any for a kept site, as each has its cost
    fit: FitRow | None
    merge: dict[str, float]  # worst merge error of its block by dtype

    @property
    def pruned(self) -> bool:
        """Whether the site was pruned."""
        return self.became != "keep"

    @property
    def word(self) -> str:
        """The site's new form in a word, for its box."""
        return KINDS[self.became]

    @property
    def group(self) -> str:
        """The part of the site's path before its last number: `layer3` for `layer3.2`."""
        return self._split()[0]

    @property
    def short(self) -> str:
        """The path from its last number on: `2:mlp` for `blocks.2:mlp`."""
        return self._split()[1]

    def _split(self) -> tuple[str, str]:
        path, colon, branch = self.site.partition(":")
        parts = path.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
        return ".".join(parts[:last]), ".".join(parts[last:]) + colon + branch

    @property
    def shape(self) -> str:
        """Shape of the site's input without the batch: `64×56×56`."""
        return "×".join(map(str, self.offer.shape)) if self.offer else ""

    def change(self, before: str, after: str) -> str:
        """`before → after`; for a kept site only `before`."""
        return f"{before} → {after}" if self.pruned else before

    def tip(self) -> str:
        """Everything known about the site, one fact per line."""
        rows = [("became", f"{self.word}: {self.label}" if self.pruned else "kept")]
        if o := self.offer:
            parameters = self.change(f"{o.keep_parameters:,}", f"{o.parameters:,}")
            rows += [
                ("block", o.kind),
                ("tensor", self.shape),
                ("ms of a batch, alone", self.change(digits(o.keep_ms), digits(o.ms))),
                ("MACs of an image", self.change(amount(o.keep_macs), amount(o.macs))),
                ("parameters", parameters),
            ]
        if self.fit:
            rows += [
                ("fit error" if self.pruned else "error after repair", f"{self.fit.error:.4f}"),
                ("before (prior)", f"{self.fit.prior_error:.4f}"),
            ]
        rows += [(f"merge error, {dtype}", error(value)) for dtype, value in self.merge.items()]
        return "\n".join([self.site, *(f"{name}: {value}" for name, value in rows)])


def blocks(run: ReportedRun) -> list[Block]:
    """All sites of the survey, then sites of the plan that are not in the survey."""
    rows = {row.site: row.offers for row in run.survey.sites} if run.survey else {}
    fits = {row.site: row for row in run.fits}
    names = [*rows, *(name for name in run.plan.choices if name not in rows)]
    return [_block(run, name, rows.get(name, []), fits.get(name)) for name in names]


def legend(found: Iterable[Block]) -> list[tuple[str, str]]:
    """Kinds of boxes that occur, with their words."""
    kinds = {block.became for block in found}
    return [(kind, word) for kind, word in KINDS.items() if kind in kinds]


def _block(run: ReportedRun, name: str, offers: Sequence[Offer], fit: FitRow | None) -> Block:
    if name not in run.plan.choices:
        return Block(name, "keep", "kept", offers[0] if offers else None, fit, {})
    label, candidate = run.plan.choices[name], run.plan.candidates.get(name, {})
    taken = next((offer for offer in offers if offer.candidate.label == label), None)
    block = name.partition(":")[0]
    merge: dict[str, float] = {}
    for check in run.checks:
        if check.where in (block, name) and check.where:
            merge[check.dtype] = max(check.error, merge.get(check.dtype, 0.0))
    kind = str(candidate.get("kind", ""))
    became = _LOOKS.get(kind, "other")
    if kind == "inherit":
        became = "one" if len(candidate.get("segments", ())) <= 1 else "two"
    return Block(name, became, run.plan.choices[name], taken, fit, merge)
