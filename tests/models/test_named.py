from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from updp.data import Batches, open_source, preprocess_for
from updp.errors import UserError
from updp.models import hash_state, load_model, num_outputs, own_copy

CIFAR = str(Path(__file__).parents[2] / "examples" / "cifar_resnet.py")

FACTORIES = """
from torch import Tensor, nn
from neighbour import WIDTH
_hidden = len
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 3))
def broken(): raise KeyError("depth\\nsecond line")
def number(): return 7
def unpooled(): return nn.Conv2d(3, 4, 1)
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 12\n")
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES)
    return path


@pytest.mark.parametrize("spec", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_library_models_get_the_number_of_classes(spec: str) -> None:
    model = load_model(spec, num_classes=7)
    assert num_outputs(model, (3, 64, 64)) == 7


def test_untrained_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first = load_model("timm/test_vit", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert hash_state(load_model("timm/test_vit", seed=1)) == hash_state(first)
    assert hash_state(load_model("timm/test_vit", seed=2)) != hash_state(first)


def test_a_factory_may_import_its_neighbours(user_file: Path) -> None:
    assert num_outputs(load_model(f"{user_file}:linear"), (3, 2, 2)) == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("resnet18", "write timm/NAME, torchvision/NAME, hf/DIR, zoo/NAME or path/file.py:factory"),
        ("timm/resnet_18", "did you mean .*resnet18"),
        ("timm/resnet18.no_such_tag", "resnet18.no_such_tag"),
        ("torchvision/resnet19", "did you mean .*resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", "unknown"),
        ("none/such.py:f", "none/such.py' is not there"),
        ("{file}:depth", r"no factory 'depth': it has linear, broken, number, unpooled$"),
        ("{file}", r"name its factory, .*\.py:FACTORY; it has linear, broken, number, unpooled$"),
        ("{file}:", r"name its factory, .*\.py:FACTORY; it has linear, broken, number, unpooled$"),
        ("none.py", "'none.py' is not there"),
        ("{file}:broken", "KeyError: 'depth"),
        ("{file}:number", "is a int: the factory must return an nn.Module"),
    ],
)
def test_a_bad_model_name_is_one_line(spec: str, says: str, user_file: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_model(spec.format(file=user_file))
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_import_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f(:\n")
    with pytest.raises(UserError, match="cannot be imported: SyntaxError"):
        load_model(f"{path}:f")


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path, user_file: Path) -> None:
    spec, path = f"{user_file}:linear", tmp_path / "w.safetensors"
    save_file({"1.weight": torch.zeros(3, 5), "1.bais": torch.zeros(3)}, path)
    with pytest.raises(UserError) as caught:
        load_model(spec, weights=path)
    for part in ("missing 1.bias", "unexpected 1.bais", "of 1.weight: (3, 5), not (3, 12)"):
        assert part in str(caught.value)


def test_at_most_five_keys_are_named(tmp_path: Path, user_file: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({f"k{i}": torch.zeros(1) for i in range(6)}, path)
    with pytest.raises(UserError, match=r"k2; \.\.\. and 3 more$"):
        load_model(f"{user_file}:linear", weights=path)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "are not there"), (b"PK\x03\x04", "safetensors.torch.save_file")]
)
def test_unreadable_weights_are_named(
    content: bytes | None, says: str, tmp_path: Path, user_file: Path
) -> None:
    path = tmp_path / "w.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_model(f"{user_file}:linear", weights=path)


def test_a_folder_of_weights_is_said_to_be_one(tmp_path: Path, user_file: Path) -> None:
    with pytest.raises(UserError, match="are a folder: give the safetensors file in it"):
        load_model(f"{user_file}:linear", weights=tmp_path)


def test_hash_sees_values_names_shapes_and_dtypes() -> None:
    def holding(**tensors: torch.Tensor) -> nn.Module:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return module

    zeros = torch.zeros(4, 2)
    variants = [
        holding(a=zeros),
        holding(b=zeros),
        holding(a=zeros + 1),
        holding(a=zeros.T),
        holding(a=zeros.int()),
        holding(a=zeros.bfloat16(), b=torch.tensor(True)),
    ]
    assert len({hash_state(module) for module in variants}) == len(variants)
    assert hash_state(holding(a=zeros, b=zeros)) == hash_state(holding(b=zeros, a=zeros))
    assert hash_state(holding(a=zeros.T)) == hash_state(holding(a=zeros.T.contiguous()))


def test_num_outputs_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    model[1].eval()
    before = hash_state(model)
    assert num_outputs(model, (3, 2, 2)) == 5
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert hash_state(model) == before


def test_num_outputs_wants_a_classifier(user_file: Path) -> None:
    model = load_model(f"{user_file}:unpooled")
    with pytest.raises(UserError, match=r"to \(1, 4, 8, 8\), and a classifier to \(N, classes\)"):
        num_outputs(model, (3, 8, 8))
    with pytest.raises(UserError, match=r"fails on an input of \(1, 1, 8, 8\)"):
        num_outputs(model, (1, 8, 8))


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_cifar_weights_load_strictly(depth: int, shared_data: Path) -> None:
    path = shared_data / "weights" / f"cifar10_resnet{depth}.safetensors"
    model = load_model(f"{CIFAR}:resnet{depth}", weights=path)
    assert torch.equal(model.state_dict()["linear.bias"], load_file(path)["linear.bias"])


def test_cifar_resnet20_has_its_published_accuracy(shared_data: Path) -> None:
    path = shared_data / "weights" / "cifar10_resnet20.safetensors"
    model = load_model(f"{CIFAR}:resnet20", weights=path).eval()
    source = open_source(str(shared_data / "cifar10_lossless"), input_size=None)
    preprocess = preprocess_for(model, source.image_size)
    with torch.no_grad():
        right = sum(
            int((model(preprocess(images)).argmax(1) == labels).sum())
            for images, labels in Batches(source.test, None, 128, seed=0, shuffle=False).epoch(0)
        )
    assert 100 * right / len(source.test) == pytest.approx(91.73, abs=0.2)


def test_the_cache_of_a_configuration_of_one_s_own_is_off() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.config = SimpleNamespace(use_cache=True, other=None)
            self.config.other = SimpleNamespace(model_type="own", use_cache=True, up=self.config)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    config = own_copy(Own()).config
    assert not config.use_cache
    assert not config.other.use_cache
