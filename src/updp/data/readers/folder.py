"""A folder of image files: `train/CLASS/...` and `test/CLASS/...` (or `val`, `validation`)."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from updp.data.images import load_images
from updp.data.resizing import InputSize
from updp.data.source import Source, fingerprint_files
from updp.errors import UserError


class Files:
    """Encoded images in files below `root`."""

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.root, self.paths = root, paths

    def read(self, index: int) -> bytes:
        """The file's contents."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {error.strerror}") from error

    def where(self, index: int) -> str:
        """`image 'train/cat/1.png'`."""
        return f"image '{self.paths[index].relative_to(self.root).as_posix()}'"


def open_folder(root: Path, input_size: InputSize | None) -> Source:
    """Open a folder; the classes are the folders of `train`, sorted by name."""
    folders = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not folders:
        raise UserError(
            f"data '{root}' needs train/CLASS/*.png and test/CLASS/*.png (or val/) inside, "
            "or train*.parquet and test*.parquet"
        )
    classes = _class_names(root / "train")
    if unknown := sorted(set(_class_names(folders[0])) - set(classes)):
        raise UserError(f"class '{unknown[0]}' of '{folders[0]}' has no folder in '{root}/train'")
    train, train_targets = _find(root, root / "train", classes)
    test, test_targets = _find(root, folders[0], classes)
    images = load_images(train, train_targets, input_size)
    return Source(
        train=images,
        test=load_images(test, test_targets, input_size),
        classes=tuple(classes),
        fingerprint=fingerprint_files(root, train.paths + test.paths),
        image_size=images.size,
    )


def _class_names(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _find(root: Path, folder: Path, classes: list[str]) -> tuple[Files, list[int]]:
    indices = {name: index for index, name in enumerate(classes)}
    samples = (
        make_dataset(str(folder), indices, extensions=IMG_EXTENSIONS, allow_empty=True)
        if classes  # else it raises
        else []
    )
    if not samples:
        raise UserError(f"'{folder}' holds no images: put them into a folder per class")
    return Files(root, [Path(path) for path, _ in samples]), [target for _, target in samples]
