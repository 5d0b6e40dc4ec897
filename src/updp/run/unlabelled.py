"""Further images without labels, for the training of stage 3 in addition to the data's own."""

from collections.abc import Callable

from updp.data import Images, Source, open_unlabelled
from updp.data.overlap import warn_of_shared_images
from updp.errors import UserError
from updp.io import processes
from updp.recipe import Recipe
from updp.stages.context import InputNames

_RUN = 64  # consecutive images compared with the test split: they may be stored together


def open_unlabelled_images(
    names: InputNames, source: Source, recipe: Recipe
) -> tuple[Images | None, str]:
    """The images at `names.unlabelled`, if any, in the form of the data's; and a fingerprint.

    Raises:
        UserError: they cannot be read, the data are not image files, batches are too small, or the
            recipe has no training that could use images without labels.
    """
    if not (name := names.unlabelled):
        return None, ""
    said = f"--unlabelled '{name}'"
    if not recipe.subnet.epochs:
        raise UserError(
            f"{said} is for the training of stage 3, and the recipe has none: take --recipe "
            "repair, or set subnet.epochs"
        )
    if recipe.subnet.distill < 1:
        raise UserError(
            f"{said}: subnet.distill={recipe.subnet.distill:g} trains on labels, too, which these "
            "images lack: set subnet.distill=1, as --recipe repair does"
        )
    if recipe.data.batch_size < 2 * processes.count():
        raise UserError(
            f"{said}: data.batch_size={recipe.data.batch_size} has no room for two images in each "
            "process, one of either kind: set a larger one"
        )
    if not names.data:
        raise UserError(f"{said} is a path and the data is none: both must be image files")
    channels, height, width = source.image_size  # image files have three axes
    images, fingerprint = open_unlabelled(
        name,
        input_size=source.train.resize or (channels, height, width),
        skip_corrupt=recipe.data.skip_corrupt,
    )
    warn_of_shared_images(
        _pixels_of(images), len(images), _pixels_of(source.test), len(source.test), run=_RUN
    )
    return images, fingerprint


def _pixels_of(images: Images) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        pixels: bytes = images[index][0].numpy().tobytes()
        return pixels

    return read
