"""Networks for 32 px and ten classes, from timm's and torchvision's own classes.

    updp inspect benchmarks/networks.py:convnext_mini

The `mini` ones train to their accuracy on one CPU thread in minutes; the others are the usual
networks with strides for 32 px, and want a GPU. `setting.py` says how each is trained.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from timm.models.convnext import ConvNeXt
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


def resnet34() -> nn.Module:
    """ResNet-34 with a 3x3 stem of stride 1 and no pooling after it."""
    model = ResNet(BasicBlock, (3, 4, 6, 3), num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return _configured(model)


def mobilenetv2_mini() -> nn.Module:
    """Eleven inverted residual blocks, 5 MMACs."""
    return _mobilenet([[1, 16, 1, 1], [3, 24, 3, 2], [4, 40, 3, 2], [4, 64, 3, 1]], stride=2)


def mobilenetv2() -> nn.Module:
    """MobileNetV2-1.0 whose first three strides are 1."""
    first, rest = [[1, 16, 1, 1], [6, 24, 2, 1]], [[6, 64, 4, 2], [6, 96, 3, 1]]
    last = [[6, 160, 3, 2], [6, 320, 1, 1]]
    return _mobilenet([*first, [6, 32, 3, 2], *rest, *last], stride=1)


def convnext_mini() -> nn.Module:
    """Ten blocks, 5 MMACs."""
    model = ConvNeXt(
        num_classes=CLASSES,
        depths=(2, 2, 4, 2),
        dims=(32, 64, 96, 128),
        patch_size=2,
        ls_init_value=1.0,
    )
    return _configured(_for_narrow(model))


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T whose stem has patches of 2 pixels."""
    return _configured(ConvNeXt(num_classes=CLASSES, patch_size=2, drop_path_rate=0.1))


def deit_mini() -> nn.Module:
    """Eight blocks of width 80 on 16 tokens, which three convolutions make. 12 MMACs."""
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


def deit_tiny() -> nn.Module:
    """DeiT-Tiny on patches of 4 pixels."""
    return _configured(
        VisionTransformer(
            img_size=32,
            patch_size=4,
            num_classes=CLASSES,
            embed_dim=192,
            depth=12,
            num_heads=3,
            drop_path_rate=0.1,
        )
    )


def _mobilenet(setting: list[list[int]], stride: int) -> nn.Module:
    # Without dropout, which updp trains without: what trains with it would be behind for that.
    model = MobileNetV2(CLASSES, inverted_residual_setting=setting, dropout=0.0)
    model.features[0][0].stride = (stride, stride)
    return _configured(model)


def _stem(*channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        conv = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _for_narrow(model: nn.Module) -> nn.Module:
    """PyTorch's own initial weights, for a standard deviation of 0.02 is too little at width 32."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return model


def _configured(model: nn.Module) -> nn.Module:
    """As timm's models do, the model says how images become inputs."""
    model.pretrained_cfg = {
        "input_size": (3, 32, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": CLASSES,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    return model
