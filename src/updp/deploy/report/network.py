"""The network's sites in order, each with what it became and what that cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from updp.candidates import Offer
from updp.deploy.report.run_files import ReportedRun
from updp.deploy.report.words import amount, digits, error
from updp.supernet import FitRow

# Kind of a box: its words and the class of its colour.
KINDS = {
    "keep": "kept",
    "one": "one operator",
    "two": "several operators",
    "fuse": "paths fused",
    "drop": "branch dropped",
    "fold": "norm folded",
    "narrow": "fewer channels",
    "other": "another candidate",
}


@dataclass(frozen=True)
class Block:
    """A site. `offer` is what it became, or for a kept one any that says the baseline's cost.

    `merge` is the worst merge error of its block by precision, on random input and images.
    """

    site: str
    became: str
    label: str
    offer: Offer | None
    fit: FitRow | None
    merge: dict[str, float]

    @property
    def pruned(self) -> bool:
        """Whether it is another than the baseline's."""
        return self.became != "keep"

    @property
    def word(self) -> str:
        """What it became, for the box."""
        return KINDS[self.became]

    @property
    def group(self) -> str:
        """The path above the last number in the site's."""
        return self._split()[0]

    @property
    def short(self) -> str:
        """The path from there on."""
        return self._split()[1]

    def _split(self) -> tuple[str, str]:
        path, colon, branch = self.site.partition(":")
        parts = path.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
        return ".".join(parts[:last]), ".".join(parts[last:]) + colon + branch

    @property
    def shape(self) -> str:
        """Of the tensor that it reads, without the batch."""
        return "×".join(map(str, self.offer.shape)) if self.offer else ""

    def details(self) -> list[tuple[str, str]]:
        """Names and values, in full."""
        rows = [("became", f"{self.word}: {self.label}" if self.pruned else "kept")]
        if o := self.offer:
            rows += [("block", o.kind), ("tensor", self.shape)]
            pairs = [
                ("ms of a batch, alone", digits(o.keep_ms), digits(o.ms)),
                ("MACs of an image", amount(o.keep_macs), amount(o.macs)),
                ("parameters", f"{o.keep_parameters:,}", f"{o.parameters:,}"),
            ]
            rows += [(n, f"{a} → {b}" if self.pruned else a) for n, a, b in pairs]
        if self.fit:
            what = "fit error" if self.pruned else "error after repair"
            rows += [
                (what, f"{self.fit.error:.4f}"),
                ("before (prior)", f"{self.fit.prior_error:.4f}"),
            ]
        rows += [(f"merge error, {dtype}", error(value)) for dtype, value in self.merge.items()]
        return rows

    def tip(self) -> str:
        """The details as text, a line each."""
        return "\n".join([self.site, *(f"{name}: {value}" for name, value in self.details())])


def blocks(run: ReportedRun) -> list[Block]:
    """Every site; those of a plan that the survey does not have come last."""
    rows = {row.site: row.offers for row in run.survey.sites} if run.survey else {}
    fits = {row.site: row for row in run.fits}
    names = [*rows, *(name for name in run.plan.choices if name not in rows)]
    return [_block(run, name, rows.get(name, []), fits.get(name)) for name in names]


def groups(found: list[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Neighbours under one path together."""
    for name, inside in groupby(found, key=lambda block: block.group):
        yield name, list(inside)


def _block(run: ReportedRun, name: str, offers: Sequence[Offer], fit: FitRow | None) -> Block:
    if name not in run.plan.choices:
        return Block(name, "keep", "kept", offers[0] if offers else None, fit, {})
    candidate = run.plan.candidates.get(name, {})
    taken = next((offer for offer in offers if offer.candidate.to_json() == candidate), None)
    block = name.partition(":")[0]
    merge: dict[str, float] = {}
    for check in run.checks:
        if check.where == block and block:
            merge[check.dtype] = max(check.error, merge.get(check.dtype, 0.0))
    kind = str(candidate.get("kind", ""))
    became = kind if kind in ("fuse", "drop", "fold", "narrow") else "other"
    if kind == "inherit":
        became = "one" if len(candidate.get("segments", ())) <= 1 else "two"
    return Block(name, became, run.plan.choices[name], taken, fit, merge)
