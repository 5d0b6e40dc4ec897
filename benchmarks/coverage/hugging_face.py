"""Networks of transformers, of each architecture one; those of text have the smallest widths."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.base import Network
from updp.blocks.nested import as_samples

VISION = """
beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers donut-swin
efficientnet focalnet hgnet_v2 hiera ijepa levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2
poolformer pp_lcnet pvt pvt_v2 regnet resnet segformer siglip swiftformer swin swinv2 textnet vit
vit_msn
"""
ENCODERS = """
albert bert camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm fnet
ibert layoutlm megatron-bert mobilebert modernbert mpnet nystromformer rembert roberta
roberta-prelayernorm roformer squeezebert xlm-roberta xmod yoso
"""
DECODERS = """
biogpt bloom cohere codegen falcon gemma gemma2 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite
helium llama mistral mpt nemotron olmo olmo2 openai-gpt opt persimmon phi phi3 qwen2 qwen3 smollm3
stablelm starcoder2 xglm
"""
# Values of a configuration, where it has the field.
_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 128, "max_position_embeddings": 64, "d_model": 64,
    "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128, "n_positions": 64, "num_layers": 4,
    "num_heads": 4, "head_dim": 16, "embedding_size": 64, "dim": 64, "n_layers": 4, "n_heads": 4,
    "hidden_dim": 128, "attention_heads": 4, "ffn_dim": 128, "ffn_hidden_size": 128,
    "max_seq_len": 64, "rotary_dim": 8, "word_embed_proj_dim": 64, "pad_token_id": 0,
    "intermediate_dim": 128, "bos_token_id": 1, "eos_token_id": 2, "num_global_key_value_heads": 2,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "efficientnet": {
        "image_size": 128,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
    },
    "esm": {"vocab_size": 128, "mask_token_id": 4, "pad_token_id": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "nemotron": {"num_key_value_heads": 4, "head_dim": 16},
    "xmod": {"default_language": "en_XX"},
}


def image_classifier(name: str) -> Network:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

    own = _OWN.get(name, {})
    config = AutoConfig.for_model(name, **own)
    if isinstance(layers := getattr(config, "num_hidden_layers", None), int) and layers > 4:
        config = AutoConfig.for_model(name, num_hidden_layers=4, **own)
    kinds = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]  # DeiT has two
    model = (kinds[0] if isinstance(kinds, list | tuple) else kinds)(config)
    vision_config = getattr(config, "vision_config", config)
    size = getattr(vision_config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision_config, "num_channels", 3)
    return Network(model, as_samples({"pixel_values": torch.randn(2, channels, height, width)}))


def text_model(head: str) -> Callable[[str], Network]:
    def load(name: str) -> Network:
        import transformers

        default = transformers.AutoConfig.for_model(name)
        named = default.to_dict()
        small = {k: v for k, v in _SMALL.items() if named.get(k) is not None}
        small |= _OWN.get(name, {})
        config = transformers.AutoConfig.for_model(name, **small)
        model = getattr(transformers, head).from_config(config)
        tokens = torch.randint(3, 100, (2, 16))
        mask = torch.ones_like(tokens)
        given: dict[str, Tensor] = {"input_ids": tokens, "attention_mask": mask}
        if "attention_mask" not in inspect.signature(model.forward).parameters:
            del given["attention_mask"]
        if "use_cache" in inspect.signature(model.forward).parameters:
            model.config.use_cache = False  # a cache is no result
        return Network(model, as_samples(given))

    return load
