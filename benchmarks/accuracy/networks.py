"""Small networks for 32 px and ten classes, from timm's and torchvision's classes, and a large one.

    updp inspect benchmarks/accuracy/networks.py:convnext_mini

The small ones train to their accuracy on one CPU thread in minutes; `baselines.py` says how.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import timm
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import nn
from torchvision.models import MobileNetV2

CLASSES = 10


def resnet_mini() -> nn.Module:
    """Ten basic blocks of width 16 to 96 whose shortcuts are 1x1 convolutions. 11 MMACs."""
    model = ResNet(
        BasicBlock,
        (3, 3, 3, 1),
        num_classes=CLASSES,
        channels=(16, 32, 64, 96),
        stem_type="deep",
        stem_width=8,
    )
    model.maxpool = nn.Identity()
    return _configured(model)


def mobilenetv2_mini() -> nn.Module:
    """Eleven inverted residual blocks. 5 MMACs."""
    setting = [[1, 16, 1, 1], [3, 24, 3, 2], [4, 40, 3, 2], [4, 64, 3, 1]]
    # Without dropout, which updp trains without: what trains with it would be behind for that.
    model = MobileNetV2(CLASSES, inverted_residual_setting=setting, dropout=0.0)
    model.features[0][0].stride = (2, 2)
    return _configured(model)


def convnext_mini() -> nn.Module:
    """Ten blocks of width 32 to 128. 5 MMACs."""
    model = ConvNeXt(
        num_classes=CLASSES,
        depths=(2, 2, 4, 2),
        dims=(32, 64, 96, 128),
        patch_size=2,
        ls_init_value=1.0,
    )
    return _configured(_for_narrow(model))


def deit_mini() -> nn.Module:
    """Eight blocks of width 80 on 16 tokens from a stem of three convolutions. 12 MMACs."""
    model = VisionTransformer(
        img_size=32,
        patch_size=1,
        num_classes=CLASSES,
        embed_dim=80,
        depth=8,
        num_heads=4,
        class_token=False,
        global_pool="avg",
        embed_layer=partial(HybridEmbed, backbone=_stem(3, 24, 48, 80)),
    )
    return _configured(_for_narrow(model))


def eva_mini() -> nn.Module:
    """As `deit_mini`, with gated feed-forward parts and rotary attention. 12 MMACs."""
    model = Eva(
        img_size=32,
        patch_size=8,
        num_classes=CLASSES,
        embed_dim=80,
        depth=8,
        num_heads=4,
        mlp_ratio=8 / 3,
        swiglu_mlp=True,
        class_token=False,
        global_pool="avg",
        use_rot_pos_emb=True,
        attn_type="rope",
    )
    model.patch_embed = HybridEmbed(
        _stem(3, 24, 48, 80), img_size=32, patch_size=1, in_chans=3, embed_dim=80
    )
    return _configured(_for_narrow(model))


def mobilenetv2_same() -> nn.Module:
    """MobileNetV2-1.0 with TensorFlow's padding and pixels, as its weights want. 300 MMACs."""
    model: nn.Module = timm.create_model("mobilenetv2_100", pad_type="same")
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    vars(model)["pretrained_cfg"] = dict(vars(model)["pretrained_cfg"]) | half
    return model


def _stem(*channels: int) -> nn.Module:
    """Convolutions of stride 2 with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        conv = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _for_narrow(model: nn.Module) -> nn.Module:
    """Reset weights to PyTorch's defaults: timm's standard deviation of 0.02 is for wide layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return model


def _configured(model: nn.Module) -> nn.Module:
    """Attach timm's configuration, which says how images become inputs."""
    vars(model)["pretrained_cfg"] = {
        "input_size": (3, 32, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": CLASSES,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    return model
