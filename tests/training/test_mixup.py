import pytest
import torch

from updp.recipe import SupernetSettings
from updp.training.mixup import blended, mixed

LABELS = torch.tensor([0, 1, 2, 3, 4])  # an odd number of them


def batch() -> torch.Tensor:
    """Each image is its label, everywhere."""
    return LABELS.float()[:, None, None, None].expand(5, 2, 8, 6).clone()


def test_without_mixup_and_cutmix_batches_are_untouched() -> None:
    images = batch()
    same, labels = mixed(images, LABELS, 5, SupernetSettings(), 3)
    assert same is images
    assert labels is LABELS


@pytest.mark.parametrize("recipe", [SupernetSettings(mixup=0.4), SupernetSettings(cutmix=1)])
def test_targets_are_the_shares_of_the_pixels(recipe: SupernetSettings) -> None:
    for seed in range(20):
        images, targets = mixed(batch(), LABELS, 5, recipe, seed)
        assert targets.shape == (5, 5)
        assert targets.sum(1).tolist() == pytest.approx([1] * 5)
        # The mean of an image is the mean of the labels in it, for these images.
        expected = targets @ LABELS.float()
        assert images.mean((1, 2, 3)).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        if recipe.cutmix:
            assert images.unique().tolist() == [0, 1, 2, 3, 4]  # whole pixels


def test_with_both_on_each_batch_takes_one() -> None:
    recipe = SupernetSettings(mixup=0.8, cutmix=1)
    whole = [
        mixed(batch(), LABELS, 5, recipe, seed)[0].frac().eq(0).all().item() for seed in range(60)
    ]
    assert 15 < sum(whole) < 45


def test_blending_depends_on_the_seed_alone() -> None:
    recipe = SupernetSettings(mixup=0.8, cutmix=1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = mixed(batch(), LABELS, 5, recipe, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = mixed(batch(), LABELS, 5, recipe, 11)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(mixed(batch(), LABELS, 5, recipe, 12)[1], first[1])


def test_blends_are_of_neighbours_in_shares_of_the_batch() -> None:
    shares = set()
    for seed in range(20):
        torch.manual_seed(seed)
        means = blended(batch()).mean((1, 2, 3))  # type: ignore[union-attr]
        share = means[1].item()  # of image 1, after image 0
        expected = [
            share * x + (1 - share) * y
            for x, y in zip(LABELS.tolist(), [4, 0, 1, 2, 3], strict=True)
        ]
        assert means.tolist() == pytest.approx(expected, abs=1e-5)
        assert 0 <= share < 1
        shares.add(round(share, 3))
    assert len(shares) > 15
    ids = LABELS[:, None]
    assert blended(ids) is ids
