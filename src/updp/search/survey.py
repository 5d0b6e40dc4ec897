"""The survey of a model: the offers of each site, timed once, and the space of plans they make."""

from typing import ClassVar

from pydantic import BaseModel

from updp.blocks import Unusable
from updp.candidates import Offer, Offers, offers_within
from updp.io.records import Record
from updp.recipe import Recipe
from updp.search.space import Choice, Option, Space


class SurveyedSite(BaseModel, frozen=True):
    """A site with its offers, the preferred one first.

    `entry` and `memory` are bytes of activations that are alive when the baseline's form is
    entered, and at the worst moment inside it.
    """

    site: str
    memory: int
    entry: int
    offers: tuple[Offer, ...]


class BaselineCost(BaseModel, frozen=True):
    """Cost of the baseline: ms for a batch, MACs of an image, parameters, bytes of weights.

    `outside` are the bytes of activations at the worst moment outside of all sites.
    """

    ms: float
    macs: int
    parameters: int
    weights: int
    outside: int


class Survey(Record):
    """Survey of a model: its sites with their offers, and the baseline's cost.

    `in_place` is the ratio of the time that a candidate saves within the model to the time that it
    saves when it is timed alone.
    """

    FILE: ClassVar[str] = "sites/sites.json"
    sites: tuple[SurveyedSite, ...]
    unusable: tuple[Unusable, ...]
    baseline: BaselineCost
    in_place: float

    def offers(self, recipe: Recipe | None = None) -> Offers:
        """The offers of each site, the preferred one first; with a recipe, those for its budget."""
        offers = {row.site: row.offers for row in self.sites}
        return offers if recipe is None else offers_within(offers, recipe)

    def space(self, offers: Offers) -> Space:
        """The space of plans that some of these offers make."""
        sites = tuple(
            Choice(
                row.site, tuple(self._option(o, row.entry) for o in offers[row.site]), row.memory
            )
            for row in self.sites
            if row.site in offers
        )
        return Space(sites, **self.baseline.model_dump())

    def _option(self, offer: Offer, entry: int) -> Option:
        return Option(
            offer.candidate.label,
            ms=offer.saved_ms * self.in_place,
            macs=offer.keep_macs - offer.macs,
            parameters=offer.keep_parameters - offer.parameters,
            bytes=offer.keep_weights - offer.weights,
            memory=entry + offer.memory,
            noise=offer.noise_ms * self.in_place,
            blocks=int(offer.candidate.shallower),
        )
