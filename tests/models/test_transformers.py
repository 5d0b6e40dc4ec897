"""Image classifiers of transformers, built from a folder without a network."""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.families import error
from tests.sampling import every_other
from updp.blocks import find
from updp.candidates import proposals
from updp.data import preprocess_for, resize_for
from updp.errors import UserError
from updp.models import load_model, num_outputs, own_copy
from updp.recipe import CandidateSettings
from updp.supernet import Supernet

VIT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "image_size": 16, "patch_size": 8},
}
STAGES = {"image_size": 32, "depths": [1, 2]}
# Configuration; sites that merge; whether attention can be left out.
MODELS = {
    "vit": (VIT, ["layers.0:mlp", "layers.1:mlp"], True),
    "deit": (VIT, ["layers.0:mlp", "layers.1:mlp"], True),
    "beit": (VIT, ["layers.0:mlp", "layers.1:mlp"], True),
    "dinov2": (VIT, ["layer.0:mlp", "layer.1:mlp"], True),
    "convnext": (
        {**STAGES, "hidden_sizes": [8, 16], "num_stages": 2},
        ["stages.0.layers.0", "stages.1.layers.0", "stages.1.layers.1"],
        False,
    ),
    "swin": (
        {**STAGES, "patch_size": 2, "embed_dim": 8, "num_heads": [2, 2], "window_size": 4},
        ["layers.0.blocks.0:mlp", "layers.1.blocks.0:mlp", "layers.1.blocks.1:mlp"],
        True,
    ),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
        ["stages.0.layers.0", "stages.1.layers.0", "stages.1.layers.1"],
        False,
    ),
}


@pytest.fixture(autouse=True)
def library() -> None:
    with warnings.catch_warnings(action="ignore"):
        pytest.importorskip("transformers", reason="the hf extra is not installed")


def folder(path: Path, name: str) -> Path:
    one = {"architectures": ["DeiTForImageClassification"]} if name == "deit" else {}
    config = {
        **one,
        "model_type": name,
        "id2label": {str(i): str(i) for i in range(5)},
        **MODELS[name][0],
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", every_other(MODELS))
def test_transformers_models_are_found_pruned_and_merged(name: str, tmp_path: Path) -> None:
    _, expected, attention = MODELS[name]
    torch.manual_seed(0)  # of some random weights float32 loses more than the 1e-5 below
    model = load_model(f"hf/{folder(tmp_path, name)}").eval()
    x = torch.randn(2, 3, 32, 32) if name not in ("vit", "deit", "beit", "dinov2") else None
    x = torch.randn(2, 3, 16, 16) if x is None else x
    assert num_outputs(model, tuple(x.shape[1:])) == 5
    before = model(x)
    findings = find(model, x)
    chains = [s for s in findings.sites if s.branch is not None]
    assert chains
    if version("transformers") >= "5.24":  # before, layers had other names, and not all were seen
        assert len(chains) == len(expected)
        assert all(s.name.endswith(end) for s, end in zip(chains, expected, strict=True))
        assert any(s.branch is None for s in findings.sites) == attention
    settings = CandidateSettings(drop="always", fold_norms=True)
    options = {s.name: list(proposals(findings.traced(s, model), settings)) for s in findings.sites}
    net = Supernet(model, findings, options).eval()
    assert error(net(x), before) < 1e-6
    net.calibrate(x)
    for i in range(3):
        net.choose({n: found[min(i, len(found) - 1)].label for n, found in options.items()})
        assert error(net.merged()(x), net(x)) < 1e-5


def test_a_saved_folder_brings_weights_preprocessing_and_a_new_head(tmp_path: Path) -> None:
    model = load_model(f"hf/{folder(tmp_path, 'vit')}", seed=3)
    saved = tmp_path / "saved"
    model.model.save_pretrained(saved)
    (saved / "preprocessor_config.json").write_text('{"image_mean": [0, 0.1, 0.2]}')
    again = load_model(f"hf/{saved}", seed=4)
    x = torch.randn(1, 3, 16, 16)
    assert error(again.eval()(x), model.eval()(x)) < 1e-6
    other = load_model(f"hf/{saved}", num_classes=7)
    assert num_outputs(other, (3, 16, 16)) == 7
    for name, tensor in other.model.vit.state_dict().items():
        assert torch.equal(tensor, model.model.vit.state_dict()[name])
    images = preprocess_for(again, None)
    assert (images.input_size, images.mean) == ((3, 16, 16), (0, 0.1, 0.2))


def test_weights_that_are_missing_or_misshapen_are_no_random_ones(tmp_path: Path) -> None:
    model = load_model(f"hf/{folder(tmp_path, 'vit')}", seed=3)
    saved = tmp_path / "saved"
    model.model.half().save_pretrained(saved)
    file = saved / "model.safetensors"
    tensors = load_file(file)
    again = load_model(f"hf/{saved}")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    key = next(key for key in tensors if key.endswith("cls_token"))
    for change in ({}, {key: torch.zeros(1, 1, 7)}):
        rest = {name: value for name, value in tensors.items() if name != key}
        save_file({**rest, **change}, file, {"format": "pt"})
        for classes in (None, 7):
            with pytest.raises(UserError, match=f"no weights of the right shape for {key}, which"):
                load_model(f"hf/{saved}", num_classes=classes)
    file.rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin' is a pickle, which updp never opens"):
        load_model(f"hf/{saved}")


PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"size": 16, "resample": 2},
    "deit": {"size": 18, "crop_size": 16, "do_center_crop": True, "resample": 3},
    "convnext": {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3},
    "resnet": {"size": 400, "crop_pct": 0.9, "resample": 2},
    "swin": {"size": {"height": 32, "width": 32}, "resample": 3},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_the_folders_processor_does(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processors = pytest.importorskip("transformers")
    stated = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], **PROCESSORS[name]}
    kind = {"resnet": "ConvNext", "swin": "ViT", "vit": "ViT", "deit": "DeiT"}.get(name, "ConvNext")
    stated["image_processor_type"] = f"{kind}ImageProcessor"
    (folder(tmp_path, name) / "preprocessor_config.json").write_text(json.dumps(stated))
    model = load_model(f"hf/{tmp_path}")
    y, x = np.mgrid[:90, :140]
    picture = Image.fromarray(np.stack([x, 2 * y, (x + y) % 256], 2).astype(np.uint8))
    processor = processors.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    wanted = processor(picture, return_tensors="pt")["pixel_values"]
    resize = resize_for(model)
    assert resize is not None
    found = preprocess_for(model, None)(torch.from_numpy(resize(picture))[None])
    assert found.shape == wanted.shape
    assert (found - wanted).abs().mean() < 0.02  # their resize rounds otherwise
    (tmp_path / "preprocessor_config.json").write_text('{"resample": "large"}')
    with pytest.raises(UserError, match=r"preprocessor_config\.json' is not understood"):
        load_model(f"hf/{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text('{"size": "large"}')
    load_model(f"hf/{tmp_path}")
    assert "preprocessor_config.json' is not used: " in caplog.text


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_model(f"hf/{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="is no image classifier"):
        load_model(f"hf/{tmp_path}")


class Wrapped(torch.nn.Module):
    """A user's own module around a language model."""

    def __init__(self, lm: torch.nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lm(input_ids=input_ids).logits


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_wrapped_language_model_keeps_no_cache(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    size = {
        **{"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
    }
    torch.manual_seed(0)
    if name == "llama":
        lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
    else:
        vision = VIT | {"num_hidden_layers": 1, "num_channels": 3}
        parts = {"text_config": size, "vision_config": vision, "mm_tokens_per_image": 4}
        config = transformers.Gemma3Config(**parts)
        lm = transformers.Gemma3ForConditionalGeneration(config)
    ids = torch.arange(10).view(2, 5)
    for model in (own_copy(Wrapped(lm)).lm, own_copy(lm)):
        assert model.eval()(input_ids=ids).past_key_values is None
    assert lm.eval()(input_ids=ids).past_key_values is not None
