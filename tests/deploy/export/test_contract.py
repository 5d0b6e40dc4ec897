"""What every format keeps: any batch, any size that the model takes, the model's own logits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.deploy.export.nets import CASES, Case, make
from tests.extras import needs
from tests.road import prune_half
from tests.sampling import slow
from updp import UserError
from updp.deploy.export import FORMATS, Format, openvino
from updp.deploy.export import base as bases
from updp.deploy.export.base import Network
from updp.deploy.export.program import CapturedModel, capture

pytestmark = pytest.mark.usefixtures("one_thread")


class Written(NamedTuple):
    case: Case
    model: nn.Module
    format: Format
    path: Path
    program: CapturedModel
    network: Network

    def images(self, batch: int, *size: int) -> Tensor:
        torch.manual_seed(batch)
        return torch.randn(batch, self.case.shape[0], *(size or self.case.shape[1:]))

    def differs(self, images: Tensor) -> float:
        with torch.no_grad():
            return float((self.network(images) - self.model(images)).abs().max())


@pytest.fixture(
    scope="module",
    params=[pytest.param(f"{c}-{f}", marks=needs(f)) for c in CASES for f in FORMATS],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    case, form = request.param.split("-")
    one, model = FORMATS[form], make(CASES[case])
    before = copy.deepcopy(model.state_dict())
    path = tmp_path_factory.mktemp(request.param) / f"model{one.suffix}"
    program = one.write(model, torch.randn(1, *CASES[case].shape), path)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    return Written(CASES[case], model, one, path, program, one.load(path))


@pytest.mark.parametrize("batch", [1, slow(2), 3, slow(16)])
def test_a_file_takes_batches_of_any_size(written: Written, batch: int) -> None:
    images = written.images(batch)
    assert written.network(images).shape == written.model(images).shape
    assert written.differs(images) < 1e-5


class Rooted(nn.Module):
    """A branch in the forward of the model itself, which is the one that pruning rewrites."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(torch.relu(self.a(x)))).mean((2, 3))


def test_a_model_whose_own_forward_was_rewritten_is_captured() -> None:
    x = torch.randn(2, 4, 9, 7)
    merged = prune_half(Rooted(), x)
    captured = capture(merged, x).exported.module()
    assert torch.allclose(captured(x), merged(x), atol=1e-5)


def test_a_file_takes_every_image_size_that_the_model_takes(written: Written) -> None:
    assert written.program.any_size == (written.case.any_size and hasattr(Dim, "AUTO"))
    if written.program.any_size:
        for size in ((8, 16), (21, 10), (9, 7)):
            assert written.differs(written.images(3, *size)) < 1e-5
    else:
        assert written.program.dynamic == ("batch",)


def test_a_format_writes_no_file_but_its_own(written: Written) -> None:
    files = written.format.files(written.path)
    assert files[0] == written.path
    left = set(written.path.parent.iterdir()) - {written.path.parent / "__pycache__"}
    assert left == set(files)


def test_files_tell_nothing_of_this_machine(written: Written) -> None:
    here = [str(Path(__file__).parents[3]), str(written.path.parent)]
    for file in written.format.files(written.path):
        assert not [name for name in here if name.encode() in file.read_bytes()]


def test_files_hold_the_weights_once(written: Written) -> None:
    weights = sum(t.nbytes for t in written.model.parameters())
    size = sum(file.stat().st_size for file in written.format.files(written.path))
    assert size > 0.7 * weights  # norms may be folded
    assert size < weights + 90_000  # the graph


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_missing_package_is_named(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    if not form.packages:
        form.check()
        return

    def missing(name: str) -> object:
        raise ImportError(f"No module named {name}")

    monkeypatch.setattr(bases, "import_module", missing)
    monkeypatch.setattr(openvino, "import_openvino", lambda: missing("openvino"))
    with pytest.raises(UserError, match=f"export to {form.name} needs {form.packages[0]}: pip"):
        form.write(nn.Identity(), torch.zeros(1, 1, 2, 2), Path("nowhere"))
    assert not Path("nowhere").exists()


def pooled_then_flat() -> nn.Module:
    """A map of 2x2 is flattened, and images of 33x35 have such a one, too: the rest is cut off."""
    layers = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)) for _ in range(4))
    return nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Flatten(), nn.Linear(16, 5))


class Patches(nn.Module):
    """A transformer's patches of 4x4 with positions of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.positions = nn.Parameter(torch.randn(1, 64, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.patches(x).flatten(2).transpose(1, 2) + self.positions).mean(1))


class Columns(nn.Module):
    """Rows are averaged; 32 columns are one, and 48 are, too."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = nn.AvgPool2d((1, 32)), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x).mean(2).flatten(1))


@pytest.mark.parametrize("build", [pooled_then_flat, slow(Patches), slow(Columns)])
def test_a_size_that_only_rounding_allows_is_not_dynamic(build: Callable[[], nn.Module]) -> None:
    model, images = build().eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 33, 35)).shape == (1, 5)
    program = capture(model, images)
    assert program.dynamic == ("batch",)
    assert program.note.startswith("height and width are those of 3x32x32")


class Prefixed(nn.Module):
    """A token before those of the image, as many as `len` says that there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1).mean(1))


def test_a_forward_that_counts_its_images_has_a_dynamic_batch() -> None:
    model, images = Prefixed().eval(), torch.randn(7, 3, 4, 4)
    program = capture(model, images[:2])
    assert "batch" in program.dynamic
    with torch.no_grad():
        torch.testing.assert_close(program.exported.module()(images), model(images))


class Baked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]) * 1, -1) if len(x) == 3 else x.flatten(1)[:2]


class Converted(nn.Module):
    """Counts the images from windows of half an image each, as window attention does."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 2, x[0].numel() // 2)
        number = windows.reshape(-1, windows.shape[-1]).shape[0] / 2
        assert not isinstance(windows, int)
        return windows.reshape(int(number), int("-1"))


@pytest.mark.skipif(not hasattr(Dim, "AUTO"), reason="PyTorch before 2.6 has no such symbols")
def test_a_forward_that_makes_whole_numbers_of_sizes_has_a_dynamic_batch() -> None:
    model, images = Converted().eval(), torch.randn(7, 3, 4, 4)
    program = capture(model, images[:2])
    assert program.dynamic == ("batch",)
    torch.testing.assert_close(program.exported.module()(images), model(images))
    assert "int" not in globals()


class Looped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([image.mean((1, 2)) for image in x])


class OfThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.ones(3, 1, 1, 1)).flatten(1)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (Baked, "return x.reshape(int(x.shape[0]) * 1, -1) if len(x) == 3 else"),
        (Looped, "return torch.stack([image.mean((1, 2)) for image in x])"),
        (OfThree, "return (x + torch.ones(3, 1, 1, 1)).flatten(1)"),
    ],
)
def test_a_line_that_fixes_the_batch_is_named(
    build: Callable[[], nn.Module], line: str, tmp_path: Path
) -> None:
    text = r"dynamic batch: line \d+ of test_contract\.py \(" + re.escape(line)
    with pytest.raises(UserError, match=f"does not read {build.__name__} with a {text}.*as it is"):
        FORMATS["pt2"].write(build(), torch.zeros(3, 1, 2, 2), tmp_path / "model.pt2")


class Unreadable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else x.flatten(1)[:2]


def test_a_model_that_torch_export_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not read Unreadable .*batch: Guard"):
        FORMATS["pt2"].write(Unreadable(), torch.zeros(3, 1, 2, 2), tmp_path / "model.pt2")
