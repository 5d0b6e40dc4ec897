"""A merged network, written by `updp export`. It needs torch and safetensors, not updp.

    from model import load

    network = load("model.safetensors")  # beside this file
    logits = network(images)

`images` is float32 (N, 1, H, W) of any batch and size; 8x8 is what it
knows best,
prepared as preprocess.json says.

All parameters can be trained on. BatchNorms keep the statistics that they have, and there is no
dropout: train() and eval() change nothing. `aten` holds PyTorch's operators under their own
names; aten.conv2d is what torch.nn.functional.conv2d calls.
"""

import torch
from safetensors.torch import load_file
from torch import nn

aten = torch.ops.aten

PARAMETERS = {
    "stem.weight": (6, 1, 3, 3),
    "stem.bias": (6,),
    "blocks.0.branch_merged.weight": (6, 6, 3, 3),
    "blocks.0.branch_merged.bias": (6,),
    "blocks.1.conv1.weight": (6, 6, 3, 3),
    "blocks.1.bn1.weight": (6,),
    "blocks.1.bn1.bias": (6,),
    "blocks.1.conv2.weight": (6, 6, 3, 3),
    "blocks.1.bn2.weight": (6,),
    "blocks.1.bn2.bias": (6,),
    "blocks.2.conv1.weight": (6, 6, 3, 3),
    "blocks.2.bn1.weight": (6,),
    "blocks.2.bn1.bias": (6,),
    "blocks.2.conv2.weight": (6, 6, 3, 3),
    "blocks.2.bn2.weight": (6,),
    "blocks.2.bn2.bias": (6,),
    "blocks.3.branch_merged_scale": (6, 1, 1),
    "blocks.3.branch_merged_shift": (6, 1, 1),
    "head.weight": (10, 6),
    "head.bias": (10,),
}

BUFFERS = {
    "blocks.1.bn1.running_mean": ((6,), torch.float32),
    "blocks.1.bn1.running_var": ((6,), torch.float32),
    "blocks.1.bn2.running_mean": ((6,), torch.float32),
    "blocks.1.bn2.running_var": ((6,), torch.float32),
    "blocks.2.bn1.running_mean": ((6,), torch.float32),
    "blocks.2.bn1.running_var": ((6,), torch.float32),
    "blocks.2.bn2.running_mean": ((6,), torch.float32),
    "blocks.2.bn2.running_var": ((6,), torch.float32),
}


def load(path="model.safetensors", device="cpu"):
    """The network with its weights."""
    network = Network()
    network.load_state_dict(load_file(path))
    return network.to(device)


class Network(nn.Module):
    """Without `load`, all of its tensors are zero."""

    def __init__(self):
        super().__init__()
        for name, shape in PARAMETERS.items():
            _put(self, name, nn.Parameter(torch.zeros(shape)))
        for name, (shape, dtype) in BUFFERS.items():
            _put(self, name, torch.zeros(shape, dtype=dtype))

    def forward(self, images):
        """Logits (N, classes) of `images`."""
        w = dict(self.named_parameters()) | dict(self.named_buffers())
        # the model: Tiny
        conv2d = aten.conv2d.default(images, w["stem.weight"], w["stem.bias"], [2, 2], [1, 1])
        relu = aten.relu.default(conv2d)
        conv2d_1 = aten.conv2d.default(
            relu, w["blocks.0.branch_merged.weight"], w["blocks.0.branch_merged.bias"], [1, 1], [1, 1]
        )
        relu_1 = aten.relu.default(conv2d_1)
        # blocks.1: Block
        conv2d_2 = aten.conv2d.default(relu_1, w["blocks.1.conv1.weight"], None, [1, 1], [1, 1])
        batch_norm = aten.batch_norm.default(
            conv2d_2, w["blocks.1.bn1.weight"], w["blocks.1.bn1.bias"], w["blocks.1.bn1.running_mean"], w["blocks.1.bn1.running_var"], False, 0.1, 1e-05, False
        )
        relu_2 = aten.relu.default(batch_norm)
        conv2d_3 = aten.conv2d.default(relu_2, w["blocks.1.conv2.weight"], None, [1, 1], [1, 1])
        batch_norm_1 = aten.batch_norm.default(
            conv2d_3, w["blocks.1.bn2.weight"], w["blocks.1.bn2.bias"], w["blocks.1.bn2.running_mean"], w["blocks.1.bn2.running_var"], False, 0.1, 1e-05, False
        )
        add = aten.add.Tensor(relu_1, batch_norm_1)
        relu_3 = aten.relu.default(add)
        # blocks.2: Block
        conv2d_4 = aten.conv2d.default(relu_3, w["blocks.2.conv1.weight"], None, [1, 1], [1, 1])
        batch_norm_2 = aten.batch_norm.default(
            conv2d_4, w["blocks.2.bn1.weight"], w["blocks.2.bn1.bias"], w["blocks.2.bn1.running_mean"], w["blocks.2.bn1.running_var"], False, 0.1, 1e-05, False
        )
        relu_4 = aten.relu.default(batch_norm_2)
        conv2d_5 = aten.conv2d.default(relu_4, w["blocks.2.conv2.weight"], None, [1, 1], [1, 1])
        batch_norm_3 = aten.batch_norm.default(
            conv2d_5, w["blocks.2.bn2.weight"], w["blocks.2.bn2.bias"], w["blocks.2.bn2.running_mean"], w["blocks.2.bn2.running_var"], False, 0.1, 1e-05, False
        )
        add_1 = aten.add.Tensor(relu_3, batch_norm_3)
        relu_5 = aten.relu.default(add_1)
        # the model: Tiny
        addcmul = aten.addcmul.default(
            w["blocks.3.branch_merged_shift"], relu_5, w["blocks.3.branch_merged_scale"]
        )
        relu_6 = aten.relu.default(addcmul)
        mean = aten.mean.dim(relu_6, [2, 3])
        linear = aten.linear.default(mean, w["head.weight"], w["head.bias"])
        return linear


def _put(module, name, tensor):
    """Register a tensor under its full name: `layer1.0.conv.weight`."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)
