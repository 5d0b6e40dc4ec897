import pytest
import torch

from updp.data import Augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_move_is_a_shift_of_the_image(dtype: torch.dtype) -> None:
    image = torch.arange(1, 26).reshape(1, 5, 5).to(dtype)
    out = Augment(shift=1)(image.expand(200, 2, 5, 5), generator())
    assert out.dtype == dtype
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1))
    moves = [padded[y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    seen = {next(i for i, m in enumerate(moves) if torch.equal(m, o)) for o in out[:, 0]}
    assert len(seen) == 9
    assert torch.equal(out[:, 0], out[:, 1])  # channels move together


def test_flip_mirrors_about_half() -> None:
    image = torch.arange(12).reshape(1, 3, 4)
    out = Augment(flip=True)(image.expand(100, 1, 3, 4), generator())
    flipped = (out == image.flip(-1)).flatten(1).all(1)
    assert ((out == image).flatten(1).all(1) | flipped).all()
    assert 30 < int(flipped.sum()) < 70


def test_without_shift_and_flip_images_are_untouched() -> None:
    batch = torch.rand(4, 3, 5, 6)
    assert torch.equal(Augment()(batch, generator()), batch)


def test_augmentation_draws_from_its_generator_alone() -> None:
    batch = torch.rand(16, 3, 8, 8)
    augment, state = Augment(shift=2, flip=True), torch.get_rng_state()
    first = augment(batch, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(batch, generator(1)), first)
    assert not torch.equal(augment(batch, generator(2)), first)
