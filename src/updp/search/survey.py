"""The survey of a model: the offers of each site, timed once, and the space of plans they make."""

from typing import ClassVar

from pydantic import BaseModel

from updp.blocks import Unusable
from updp.candidates import Offer, Offers, offers_within
from updp.io.records import Record
from updp.recipe import Recipe
from updp.search.space import Option, SiteOptions, Space


class SurveyedSite(BaseModel, frozen=True):
    """A site with its offers."""

    site: str  # name of the site
    memory: int  # peak bytes of activations inside the block, for a batch
    entry: int  # bytes of activations alive when the site is entered, for a batch
    offers: tuple[Offer, ...]  # the preferred one first


class BaselineCost(BaseModel, frozen=True):
    """Cost of the baseline."""

    ms: float  # median latency in ms for a batch
    macs: int  # multiply-accumulates for one image
    parameters: int  # number of scalar parameters
    weights: int  # bytes of parameters and buffers
    outside: int  # peak bytes of activations outside of all sites, for a batch


class Survey(Record):
    """Survey of a model: its sites with their offers, and the baseline's cost."""

    FILE: ClassVar[str] = "sites/sites.json"
    sites: tuple[SurveyedSite, ...]  # sites with an offer, in the model's order
    unusable: tuple[Unusable, ...]  # blocks that are no site, and sites without an offer
    baseline: BaselineCost  # cost of the whole model
    in_place: float  # time saved by candidates within the model, divided by savings alone

    def offers(self, recipe: Recipe | None = None) -> Offers:
        """The offers of each site, the preferred one first; with a recipe, those for its budget."""
        offers = {row.site: row.offers for row in self.sites}
        return offers if recipe is None else offers_within(offers, recipe)

    def space(self, offers: Offers) -> Space:
        """The space of plans with these offers."""
        sites = tuple(
            SiteOptions(
                row.site, tuple(self._option(o, row.entry) for o in offers[row.site]), row.memory
            )
            for row in self.sites
            if row.site in offers
        )
        return Space(sites, **self.baseline.model_dump())

    def _option(self, offer: Offer, entry: int) -> Option:
        return Option(
            offer.candidate.label,
            saved_ms=offer.saved_ms * self.in_place,
            saved_macs=offer.keep_macs - offer.macs,
            saved_parameters=offer.keep_parameters - offer.parameters,
            saved_bytes=offer.keep_weights - offer.weights,
            memory=entry + offer.memory,
            noise=offer.noise_ms * self.in_place,
            blocks=int(offer.candidate.shallower),
        )
