"""A small residual CNN and a small ViT for 8x8 grey digits, both of timm's own classes."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# The preprocessing of images, in the attribute where timm's models have it and updp reads it.
_CONFIG = {
    "input_size": (1, 8, 8),
    "mean": (0.305,),
    "std": (0.376,),
    "num_classes": 10,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def resnet() -> ResNet:
    """Ten basic blocks in three stages: 16, 32 and 64 channels at 8x8, 4x4 and 2x2 pixels."""
    model = ResNet(
        BasicBlock,
        (4, 4, 2),
        num_classes=10,
        in_chans=1,
        channels=(16, 32, 64),
        stem_type="deep",  # with its width, makes the first stage expect 16 channels
        stem_width=8,
    )
    # timm's stem and fourth stage are for photographs: five halvings are too many for 8 pixels.
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    model.layer4 = nn.Identity()
    model.pretrained_cfg = dict(_CONFIG)
    return model


def vit() -> VisionTransformer:
    """Eight blocks, 48 channels wide, on the 16 patches of 2x2 pixels."""
    model = VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depth=8,
        num_heads=4,
        global_pool="avg",
        class_token=False,
    )
    model.pretrained_cfg = dict(_CONFIG)
    return model
