from importlib.resources import files
from pathlib import Path

import pytest

from quant_zoo import RecipeError, UnknownModelError, recipe
from quant_zoo.catalogue import list_models
from quant_zoo.recipe_format import Calibration, Training, read_recipe

LENET = files("quant_zoo").joinpath("recipes", "lenet.yaml").read_text(encoding="utf-8")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lenet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_lenet_says_what_its_file_says():
    lenet = recipe("lenet")
    assert lenet.name == "lenet" and lenet.dataset == "mnist_digits"
    assert lenet.architecture.arguments == {"channels": [16, 32], "hidden_features": 64, "classes": 10}
    assert lenet.quantizers["act"] == {"base": "Uint8ActPerTensorFloat", "bit_width": 4, "collect_stats_steps": 62}
    assert lenet.schedule["float"] == Training(epochs=16, batch_size=64, learning_rate=0.003, warm_up=0.2, shift=2)
    assert lenet.schedule["calibration"] == Calibration(batch_size=64)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("quantizers:", "quantisers:", r"lenet\.yaml:\d+:1: unknown key 'quantisers'; did you mean 'quantizers'"),
        ("dataset: mnist_digits", "dataset: mnist_digit", "unknown dataset 'mnist_digit'; did you mean 'mnist_digits'"),
        ("epochs: 16", "epoch: 16", "unknown key 'epoch'; did you mean 'epochs'"),
        ("epochs: 16", "epochs: 16.5", "'epochs' is 16.5, expected an integer"),
        ("epochs: 16", "epochs: true", "'epochs' is True, expected an integer"),
        ("epochs: 16", "epochs: 0", "'epochs' is 0, expected more than 0"),
        ("shift: 2}\n  calib", "shift: -1}\n  calib", "'shift' is -1, expected 0 or more"),
        ("warm_up: 0.2", "warm_up: 1.5", "expected a fraction of all steps below 1"),
        ("  calibration: {batch_size: 64}\n", "", "missing calibration"),
        ("version: 1", "version: 2", "version 2, this library reads 1"),
        ('bias: {base: "quant_zoo.lenet:LeNetBias"}', "bias: {bit_width: 8}", r"lenet\.yaml:\d+:9: 'base' is missing"),
        (
            "act: {base: Uint8ActPerTensorFloat",
            "act: {base: Uint8ActPerTensorFlot",
            "did you mean 'Uint8ActPerTensorFloat'",
        ),
        ("bit_width: 4", "bit_widht: 4", r"lenet\.yaml:\d+:39: unknown option 'bit_widht' .*did you mean 'bit_width'"),
        ("bit_width: 4", "bit_width: 40", "'bit_width' = 40 is not legal: expected an int from 1 to 32"),
        ("classes: 10}", "classes: 10, classes: 11}", "the key 'classes' is here twice"),
        ("classes: 10}", "classes: 10", r"lenet\.yaml:\d+:\d+: expected ',' or '}'"),
        ("summary: Two", "summary: [Two", "expected ',' or '\\]'"),
        ("version: 1", "1: 1", "the key 1 is not a text"),
    ],
)
def test_what_has_no_meaning_is_refused_with_its_place(tmp_path, before, after, message):
    assert before in LENET
    with pytest.raises(RecipeError, match=message):
        read_recipe(written(tmp_path, LENET.replace(before, after, 1)))


def test_the_named_line_is_that_of_the_key(tmp_path):
    text = LENET.replace("learning_rate: 0.002", "learning_rat: 0.002")
    line = next(n for n, row in enumerate(text.splitlines(), start=1) if "learning_rat:" in row)
    column = text.splitlines()[line - 1].index("learning_rat") + 1
    with pytest.raises(RecipeError, match=rf"lenet\.yaml:{line}:{column}: unknown key 'learning_rat'"):
        read_recipe(written(tmp_path, text))


def test_python_objects_are_not_built(tmp_path):
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        read_recipe(written(tmp_path, LENET + "\nextra: !!python/object/apply:os.getcwd []\n"))


def test_a_list_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="expected a mapping, found list"):
        read_recipe(written(tmp_path, "- 1\n"))


def test_list_takes_a_pattern():
    assert list_models("*") == ["lenet"] and list_models("le*") == ["lenet"] and list_models("x*") == []


def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownModelError, match="no model 'lennet' in quant_zoo; did you mean 'lenet'"):
        recipe("lennet")
