"""Drawings of what happens to a block: as trained, pruned, merged.

    python docs/draw_blocks.py                # docs/blocks-*.svg, one for each kind of block
    python docs/draw_blocks.py --model timm/resnet50 --site layer2.1 --recipe default --out x.svg

All that is drawn is read from the model: its blocks as `updp inspect` finds them, the trainable
form of a candidate, and the graph that merging writes. Weights are random: they are not drawn.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from drawing.columns import draw_site
from drawing.svg import to_svg

from updp.blocks import Site, find
from updp.candidates import Inherit
from updp.data import model_input_size
from updp.errors import UserError
from updp.io.files import write_text
from updp.models import load_model
from updp.recipe import Recipe

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """A kind of block by an example, on images of `size` pixels (the drawing has no sizes)."""

    model: str
    site: str
    size: int


KINDS = {
    "basic": Kind("timm/resnet18", "layer1.1", 64),
    "inverted-residual": Kind("timm/mobilenetv2_100", "blocks.1.1", 64),
    "convnext": Kind("timm/convnext_atto", "stages.0.blocks.1", 64),
    "feed-forward": Kind("timm/deit_tiny_patch16_224", "blocks.1:mlp", 224),
}


def draw(
    model: str,
    name: str,
    size: int | None = None,
    label: str | None = None,
    recipe: str = "paper",
) -> str:
    """The SVG of one site with one candidate, by default the first that is proposed for it.

    Raises UserError: there is no such site, candidate or size, or nothing in the site merges.
    """
    module = load_model(model, seed=0).eval()
    shape = (3, size, size) if size else model_input_size(module)
    if shape is None:
        raise UserError(f"model {model!r} does not say what images it takes: pass --size")
    found = find(module, torch.zeros(2, *shape).normal_(generator=torch.Generator().manual_seed(0)))
    sites = {site.name: site for site in found.sites}
    if name not in sites:
        raise UserError(f"model {model!r} has no site {name!r}: there are {', '.join(sites)}")
    site = sites[name]
    block, graph = module.get_submodule(site.block), found.graphs[site.block]
    settings = Recipe.load(Path(recipe)).candidates
    candidate = _candidate(site, list(Inherit.propose(site, block, graph, settings)), label)
    return to_svg(draw_site(site, block, graph, candidate), model)


def _candidate(site: Site, proposed: list[Inherit], label: str | None) -> Inherit:
    if not proposed:
        why = site.why or "no merged form has fewer MACs than the block"
        raise UserError(f"nothing merges at {site.name!r}: {why}")
    by_label = {candidate.label: candidate for candidate in proposed}
    if label is not None and label not in by_label:
        known = ", ".join(map(repr, by_label))
        raise UserError(f"site {site.name!r} has no candidate {label!r}: there are {known}")
    return proposed[0] if label is None else by_label[label]


def main() -> None:
    """Draw all kinds, or one site."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="timm/NAME, torchvision/NAME, or path/file.py:factory")
    parser.add_argument("--site", help="as `updp inspect` names it")
    parser.add_argument("--candidate", help="as `updp inspect` names it")
    parser.add_argument("--size", type=int, help="pixels, if not the model's own")
    parser.add_argument(
        "--recipe", default="paper", help="whose pruned form (candidates.*): paper, default, a file"
    )
    parser.add_argument("--out", type=Path, default=Path("block.svg"))
    options = parser.parse_args()
    if bool(options.model) != bool(options.site):
        parser.error("--model and --site belong together")
    with warnings.catch_warnings(action="ignore"):
        if options.model:
            try:
                asked = options.size, options.candidate, options.recipe
                text = draw(options.model, options.site, *asked)
            except UserError as error:
                parser.error(str(error))
            write_text(options.out, text)
            return
        for name, kind in KINDS.items():
            write_text(FOLDER / f"blocks-{name}.svg", draw(kind.model, kind.site, kind.size))


if __name__ == "__main__":
    main()
