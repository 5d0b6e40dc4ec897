"""The template of `model.py`, into which the graph is written."""

PAGE = '''"""A merged network, written by `updp export`. It needs torch and safetensors, not updp.

    from model import load

    network = load("{weights}")  # beside this file
    logits = network({arguments})

{inputs}

All parameters can be trained on. BatchNorms keep the statistics that they have, and there is no
dropout: train() and eval() change nothing. `aten` holds PyTorch's operators under their own
names; aten.conv2d is what torch.nn.functional.conv2d calls.
"""

{math}import torch
from safetensors.torch import load_file
from torch import nn

aten = torch.ops.aten

PARAMETERS = {parameters}

BUFFERS = {buffers}


def load(path="{weights}", device="cpu"):
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

    def forward(self, {arguments}):
        """Logits (N, classes)."""
        w = dict(self.named_parameters()) | dict(self.named_buffers())
{body}


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
'''
