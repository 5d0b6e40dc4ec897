"""What a run may prune, found and timed once: offers of each site, and the space of plans."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from updp.blocks import Unusable
from updp.candidates import Offer, Offers, offers_within
from updp.io.records import Record
from updp.recipe import Recipe
from updp.search.space import Choice, Option, Space


class SurveyedSite(BaseModel):
    """A site with its offers, the preferred one first.

    `memory` and `entry` are bytes of activations that are alive at the worst moment inside the
    baseline's form, and when it is entered.
    """

    model_config = ConfigDict(frozen=True)

    site: str
    memory: int
    entry: int
    offers: tuple[Offer, ...]


class BaselineCost(BaseModel):
    """Of the baseline: ms for a batch, MACs of an image, parameters, bytes of weights.

    `outside` are the bytes of activations at the worst moment outside of all sites.
    """

    model_config = ConfigDict(frozen=True)

    ms: float
    macs: int
    parameters: int
    weights: int
    outside: int


class Survey(Record):
    """`in_place` is how many times what a candidate saves alone it saves within the model."""

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
        """The space of plans with their costs, of some of these offers."""
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
            offer.saved_ms * self.in_place,
            offer.keep_macs - offer.macs,
            offer.keep_parameters - offer.parameters,
            offer.keep_weights - offer.weights,
            entry + offer.memory,
            offer.noise_ms * self.in_place,
            int(offer.candidate.shallower),
        )
