"""Prune text models: a BERT-like encoder that tags tokens, and a Llama-like decoder.

python examples/tasks/text.py
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import updp

WORDS, WIDTH, HEADS, TOKENS, TAGS = 40, 32, 4, 12, 3


class Attention(nn.Module):
    """Multi-head attention; `mask` (N, tokens) is 0 for tokens that are not looked at."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, tokens, width) to the same."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :].bool()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class EncoderLayer(nn.Module):
    """BERT's: attention and a feed-forward branch, each with its norm behind the add."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, tokens, width) to the same."""
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Tags tokens; called by keyword, and returns a dictionary."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(depth))
        self.head = nn.Linear(WIDTH, TAGS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Ids and mask (N, tokens) to logits (N, tokens, tags)."""
        x = self.words(input_ids) + self.places
        for layer in self.layers:
            x = layer(x, attention_mask)
        return {"logits": self.head(x), "last_hidden_state": x}


class RMSNorm(nn.Module):
    """Llama's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to the same."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class GatedMlp(nn.Module):
    """Llama's feed-forward branch (SwiGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """Llama's: causal attention and a gated branch, each with its norm before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(), Attention(causal=True)
        self.norm2, self.mlp = RMSNorm(), GatedMlp()

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Next tokens; the head shares the weights of the embedding."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(depth))
        self.norm, self.head = RMSNorm(), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (N, tokens) to logits (N, tokens, words)."""
        x = self.words(ids) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Sentences(Dataset[Any]):
    """Each word follows from the one before it, but for some noise; tags follow from the word."""

    def __init__(self, count: int, seed: int, tagged: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 4, (count, TOKENS), generator=generator)
        start = torch.randint(0, WORDS, (count, 1), generator=generator)
        self.words = (start + steps.cumsum(1)) % WORDS
        self.lengths = torch.randint(TOKENS // 2, TOKENS + 1, (count,), generator=generator)
        self.tagged = tagged

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> Any:
        words = self.words[index]
        if not self.tagged:
            return words
        mask = (torch.arange(TOKENS) < self.lengths[index]).long()
        # A tag depends on the word before, too, and padding has none.
        tags = torch.where(mask > 0, (words + words.roll(1)) % TAGS, -100)
        return {"input_ids": words * mask, "attention_mask": mask, "labels": tags}


def fit(model: nn.Module, data: Dataset[Any], task: updp.Task, steps: int) -> None:
    """Train with the task's own loss."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    loader = torch.utils.data.DataLoader(data, 32, shuffle=True)
    for _ in range(-(-steps // len(loader))):
        for batch in loader:
            inputs, labels = task.split(batch)
            outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            optimizer.zero_grad()
            task.loss(task.outputs(outputs), labels).backward()
            optimizer.step()


def main(kind: str, steps: int = 200, depth: int = 4, budget: str = "macs=0.7") -> updp.Pruned:
    """Train and prune an `encoder` or a `decoder`, and print the metric after each stage."""
    torch.manual_seed(0)
    tagged = kind == "encoder"
    model = Encoder(depth) if tagged else Decoder(depth)
    task = updp.find_task("token-classification" if tagged else "causal-lm")
    data = Sentences(256, 0, tagged)
    fit(model, data, task, steps)
    recipe = updp.Recipe(budget=updp.Budget.parse(budget)).updated(
        *("search.evaluations=4", "search.refined=2", "subnet.epochs=1", "measure.batch_size=8")
    )
    pruned = updp.prune(model, data, recipe, test=Sentences(64, 1, tagged), task=task)
    for stage, value in pruned.result.by_stage.items():
        print(f"{kind}, {stage}: {pruned.result.metric.name} {pruned.result.metric.text(value)}")
    return pruned


if __name__ == "__main__":
    main("encoder")
    main("decoder")
