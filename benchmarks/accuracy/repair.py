"""What repair does to DeiT-Tiny's logits when six feed-forward parts are linear, training-free.

    python -m benchmarks.accuracy.repair                # judged; needs ../shared/data, minutes
    python -m benchmarks.accuracy.repair --judged 0     # every repair is kept
    python -m benchmarks.accuracy.repair --no-repair    # the fit alone

The first 600 images of `imagenet_sample` are fitted to, the other 400 are evaluated on: top-1 in %
and KL from the baseline. One seed, for nothing is drawn but the pixels of each regression.
"""

import argparse
import io
from collections.abc import Sequence

import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.common.data import DATA, check_data
from benchmarks.common.output import make_parser
from updp.blocks import find
from updp.candidates import Inherit, proposals
from updp.recipe import FitSettings, Recipe
from updp.supernet import Supernet, fit_plan
from updp.tasks.losses import distillation

LINEAR = (1, 3, 5, 7, 9, 10)  # blocks
FITTED, BATCH = 600, 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    default = FitSettings().judged
    parser.add_argument("--judged", type=float, default=default, help="see fit.judged")
    parser.add_argument("--repair", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    check_data()
    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict(load_file(DATA / "weights/imagenet_deit_tiny_patch16_224.safetensors"))
    images, labels = read_images(model)
    with torch.no_grad():
        wanted = logits_of(model, images[FITTED:])
    print(f"baseline: {figures(wanted, wanted, labels[FITTED:])}", flush=True)
    net = supernet(model, images[:2])
    linear = [f"blocks.{number}:mlp" for number in LINEAR]
    choices = {name: net.switches[name].labels[0] for name in linear}
    settings = FitSettings(repair=options.repair, judged=options.judged)
    rows = fit_plan(net, choices, list(torch.split(images[:FITTED], BATCH)), settings)
    for row in rows:
        kept = "" if row.divergence is None else f", kept {row.kept:g}, KL {row.divergence:.3f}"
        print(f"{row.site} {row.operator}: error {row.prior_error:.3f} to {row.error:.3f}{kept}")
    with torch.no_grad():
        print(f"pruned: {figures(logits_of(net, images[FITTED:]), wanted, labels[FITTED:])}")


def read_images(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs (N, C, H, W) by timm's own transform, and labels (N,)."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    table = pq.read_table(DATA / "imagenet_sample/val.parquet")
    pictures = (Image.open(io.BytesIO(row["bytes"])) for row in table["image"].to_pylist())
    inputs = torch.stack([transform(picture.convert("RGB")) for picture in pictures])
    return inputs, torch.tensor(table["label"].to_pylist())


def supernet(model: nn.Module, images: Tensor) -> Supernet:
    """The model with every feed-forward part switchable to one linear layer.

    As in a run, those that are kept are sites, too: their last layer makes up for what the skip
    brings along, which a layer that no site has cannot.
    """
    findings, settings = find(model, images), Recipe().candidates
    candidates = {}
    for site in findings.sites:
        if site.name.endswith(":mlp"):
            found = proposals(findings.traced(site, model), settings)
            candidates[site.name] = [c for c in found if isinstance(c, Inherit)][:1]
    return Supernet(model, findings, candidates).eval()


def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes)."""
    return torch.cat([net(batch) for batch in torch.split(images, BATCH)])


def figures(logits: Tensor, wanted: Tensor, labels: Tensor) -> str:
    """Top-1 and KL from the baseline."""
    right = 100 * (logits.argmax(1) == labels).double().mean().item()
    return f"top-1 {right:.2f} %, KL {distillation(logits, wanted).item():.3f}"


if __name__ == "__main__":
    main()
