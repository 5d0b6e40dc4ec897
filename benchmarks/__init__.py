"""Measurements behind the figures in README.md and docs/, by group.

| group | what is measured |
| --- | --- |
| `accuracy` | top-1 of ways to prune and train, and of other pruners at equal latency |
| `speed` | latency of merged models, predicted and measured, by runtime |
| `search` | searchers, their speed, and whether a score predicts accuracy |
| `coverage` | every classifier of torchvision and every model file of timm |

Each runs from the project root, such as `python -m benchmarks.speed.latency --help`. Its JSON lies
beside it in `results/`; pages and plots that are made of them are in docs/results.
"""
