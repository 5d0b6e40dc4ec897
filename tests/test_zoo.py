"""The networks that come with updp."""

import json

import pytest
import torch

import updp
from updp import zoo
from updp.data import open_source, preprocess_for
from updp.models import load_model
from updp.run.records import Result


@pytest.mark.parametrize("name", zoo.PRUNED)
def test_a_pruned_one_loads_and_is_as_good_as_its_figures_say(name: str) -> None:
    model = updp.load(f"zoo/{name}")
    test = open_source("digits", input_size=(1, 8, 8)).test
    pixels = torch.stack([test[i][0] for i in range(len(test))])
    with torch.inference_mode():
        guesses = model(preprocess_for(load_model("zoo/digits-vit"), test.size)(pixels)).argmax(1)
    right = 100 * (guesses == torch.tensor(test.targets)).double().mean().item()
    result = Result.read(zoo.run_directory(name))
    assert right == pytest.approx(result.merged.metric, abs=0.21)  # one image, by rounding
    assert sum(p.numel() for p in model.parameters()) == result.merged.parameters


@pytest.mark.parametrize("name", zoo.PRUNED)
def test_a_run_of_the_zoo_names_no_place_of_the_machine_it_was_made_on(name: str) -> None:
    about = json.loads((zoo.run_directory(name) / "run.json").read_text())
    assert not [word for word in json.dumps(about).split('"') if word.startswith(("/", ".."))]


def test_an_unknown_one_is_one_line() -> None:
    with pytest.raises(updp.UserError, match=r"'zoo/digits-resnets' is unknown: did you mean"):
        load_model("zoo/digits-resnets")
    with pytest.raises(updp.UserError, match="'zoo/none' holds no finished run"):
        updp.load("zoo/none")
    with pytest.raises(updp.UserError, match=r"is a baseline, .* zoo/digits-resnet-pruned and"):
        updp.load("zoo/digits-resnet")


def test_the_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    from updp.cli import app

    app(["zoo"], standalone_mode=False)
    out = capsys.readouterr().out
    assert all(f"zoo/{name}" in out for name in (*zoo.BASELINES, *zoo.PRUNED))
