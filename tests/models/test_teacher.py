import copy
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import tiny
from updp import Recipe, UserError
from updp.data import Preprocess
from updp.models import hash_state, load_model
from updp.models.teacher import Teacher, load_teacher, make_teacher
from updp.stages.subnet import SubnetKey

GREY = Preprocess((0.5,), (0.5,), (1, 8, 8))
COLOUR = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (3, 8, 8))


def own(mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int, int]) -> Preprocess:
    return Preprocess(mean, std, size)


def pixels(channels: int, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, channels, side, side), dtype=torch.uint8, generator=generator)


class Head(nn.Module):
    """Ten logits of images of any size; says what it saw."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(channels, classes)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.head(x.mean((2, 3)))


def teacher_of(
    model: nn.Module,
    recipe: Recipe | None = None,
    given: Preprocess = COLOUR,
    classes: int = 10,
    normalised: bool = False,
) -> Teacher:
    made = make_teacher(model, "other", recipe or Recipe(), given, classes, normalised=normalised)
    assert made is not None
    return made


# -- images ---------------------------------------------------------------------------------------


def test_the_pruned_models_normalisation_is_undone() -> None:
    wanted = own((0.5, 0.4, 0.3), (0.2, 0.3, 0.1), (3, 8, 8))
    got = Teacher(nn.Identity(), COLOUR, wanted)(COLOUR(pixels(3)))
    torch.testing.assert_close(got, wanted(pixels(3)), rtol=1e-5, atol=1e-5)


def test_equal_normalisation_leaves_images_untouched() -> None:
    x = COLOUR(pixels(3))
    assert Teacher(nn.Identity(), COLOUR, COLOUR)(x) is x


def test_images_are_resized_in_pixel_space() -> None:
    wanted = own((0.5, 0.4, 0.3), (0.2, 0.3, 0.1), (3, 12, 10))
    got = Teacher(nn.Identity(), COLOUR, wanted)(COLOUR(pixels(3)))
    resized = torchvision.transforms.v2.functional.resize(pixels(3).float(), [12, 10])
    mean, std = torch.tensor(wanted.mean), torch.tensor(wanted.std)
    expected = (resized / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_grey_and_colour_become_one_another() -> None:
    got = Teacher(nn.Identity(), GREY, COLOUR)(GREY(pixels(1)))
    torch.testing.assert_close(got, COLOUR(pixels(1).expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
    got = Teacher(nn.Identity(), COLOUR, GREY)(COLOUR(pixels(1).expand(-1, 3, -1, -1)))
    torch.testing.assert_close(got, GREY(pixels(1)), rtol=1e-5, atol=1e-5)


def test_images_normalised_by_loaders_are_left_alone_unless_mean_and_std_are_given() -> None:
    model = load_model("timm/test_resnet", num_classes=10)
    model.pretrained_cfg["input_size"] = (3, 8, 8)  # mean and std 0.5
    x = COLOUR(pixels(3))
    assert teacher_of(model, normalised=True).prepared(x) is x
    explained = Recipe.model_validate({"data": {"mean": COLOUR.mean, "std": COLOUR.std}})
    got = teacher_of(model, explained, normalised=True).prepared(x)
    torch.testing.assert_close(got, pixels(3) / 127.5 - 1, rtol=1e-5, atol=1e-5)


def test_settings_come_before_the_teachers_own_preprocessing() -> None:
    plain = teacher_of(Head(), given=own((0.1,) * 3, (0.2,) * 3, (3, 8, 8)))
    assert plain.own == own((0.1,) * 3, (0.2,) * 3, (3, 8, 8))  # as the model
    named = teacher_of(load_model("timm/test_resnet", num_classes=10))
    assert named.own == own((0.5,) * 3, (0.5,) * 3, (3, 160, 160))  # its own configuration
    grey = teacher_of(
        load_model("torchvision/squeezenet1_1", num_classes=10),
        Recipe().updated("subnet.teacher_size=[3, 32, 32]"),
        GREY,
    )
    assert grey.own == own(COLOUR.mean, COLOUR.std, (3, 32, 32))  # ImageNet's
    told = Recipe().updated(
        "subnet.teacher_size=[3, 9, 9]",
        "subnet.teacher_mean=[0, 0, 0]",
        "subnet.teacher_std=[1, 1, 1]",
    )
    assert teacher_of(named.model, told).own == own((0, 0, 0), (1, 1, 1), (3, 9, 9))


def test_a_teacher_is_a_frozen_copy() -> None:
    model = Head().train()
    model.seen = []
    teacher = teacher_of(model)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.seen == []


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (Head(classes=4), (), "teacher 'other' has 4 classes and the data 10"),
        (Head(), ("subnet.features=1",), "subnet.features compares the pruned blocks with"),
        (Head(), ("subnet.distill=0",), "subnet.distill=0 asks no teacher"),
        (Head(), ("subnet.teacher_size=[4, 8, 8]",), "wants images of 4 channels and they have 3"),
        (Head(), ("subnet.teacher_std=[1, 0, 1]",), "teacher_std: std (1.0, 0.0, 1.0) must be"),
        (Head(1), (), "teacher 'other': the model fails on an input of (1, 3, 8, 8)"),
        (None, ("subnet.teacher_size=[3, 8, 8]",), "subnet.teacher_size is about another teacher"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    model: nn.Module | None, settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError) as raised:
        make_teacher(model, "other", Recipe().updated(*settings), COLOUR, 10, normalised=False)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_baseline_as_teacher_needs_nothing() -> None:
    recipe = Recipe().updated("subnet.features=1", "subnet.distill=0")
    assert make_teacher(None, "", recipe, COLOUR, 10, normalised=False) is None


# -- models by name -------------------------------------------------------------------------------


def test_teachers_are_loaded_by_name_with_weights(tiny_model: str, tmp_path: Path) -> None:
    assert load_teacher(None, None, 10, 0) is None
    assert load_teacher("baseline", None, 10, 0) is None
    module = nn.Identity()
    assert type(load_teacher(module, None, 10, 0)) is nn.Identity
    weights = tmp_path / "w.safetensors"
    state = load_model("timm/test_vit", num_classes=10, seed=5).state_dict()
    save_file(copy.deepcopy(state), weights)
    loaded = load_teacher("timm/test_vit", weights, 10, 0)
    assert loaded is not None
    assert all(torch.equal(state[name], t) for name, t in loaded.state_dict().items())
    # A file's own factory may load weights itself.
    assert type(load_teacher(tiny_model, None, 10, 0)).__name__ == "Tiny"


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("timm/test_vit", None, "teacher 'timm/test_vit' would be untrained: give its weights"),
        ("timm/resnet17", None, "model 'timm/resnet17' is unknown: did you mean"),
        ("timm/test_vit", "none.safetensors", "weights 'none.safetensors' are not there"),
        ("baseline", "w.safetensors", "teacher weights are for a teacher given by name"),
        (None, "w.safetensors", "teacher weights are for a teacher given by name"),
    ],
)
def test_unloadable_teachers_are_refused(name: str | None, weights: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_teacher(name, weights, 10, 0)


# -- in a run -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fixed_clock")
def test_a_module_teaches_stage_3(tiny_model: str, tmp_path: Path) -> None:
    import updp

    recipe = tiny.make_recipe().updated("subnet.start=baseline", "subnet.teacher_size=[3, 4, 4]")
    teacher = Head().train()
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    updp.prune(tiny_model, "digits", recipe, out=tmp_path / "run", teacher=teacher)
    assert teacher.training
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    key = SubnetKey.read(tmp_path / "run")
    assert (key.teacher, key.teacher_weights) == ("", hash_state(teacher))
    with torch.no_grad():
        teacher.head.bias[0] += 1
    with pytest.raises(UserError, match="another run: the teacher's weights are not those"):
        updp.prune(tiny_model, "digits", recipe, out=tmp_path / "run", teacher=teacher)
    with pytest.raises(UserError, match="teacher_size is about another teacher"):
        updp.prune(tiny_model, "digits", recipe, out=tmp_path / "run")
