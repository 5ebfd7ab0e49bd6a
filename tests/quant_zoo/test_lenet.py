"""The demo's network: its quantizers, its float twin, and that it trains, also when compiled."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

import quant_zoo
from brevitas.errors import QuantConfigError, UnknownOptionError
from quant_zoo.recipe_format import Calibration, Training
from quant_zoo.training import accuracy, calibrate, carry_over, train

LAYERS = ("conv1", "conv2", "fc1", "fc2")


@pytest.fixture(scope="module")
def digits() -> quant_zoo.Digits:
    return quant_zoo.mnist_digits()


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_as_wide_as_asked(bits):
    model = quant_zoo.load("lenet", weight_bit_width=bits, act_bit_width=bits)
    model(images())
    model.eval()
    model(images())
    largest = 2 ** (bits - 1) - 1
    for layer in LAYERS:
        codes = getattr(model, layer).int_weight()
        assert codes.min() >= -largest and codes.max() <= largest
        assert codes.abs().max() == largest, layer
    assert float(model.relu1.quant_act_bit_width()) == bits
    assert float(model.quant_input.quant_act_bit_width()) == 8


def test_width_of_the_recipe_is_used_where_none_is_given():
    assert float(quant_zoo.load("lenet").conv1.quant_weight_bit_width()) == 4


def test_one_weight_scale_a_channel():
    model = quant_zoo.load("lenet")
    assert model.conv2.quant_weight_scale().numel() == 32 and model.fc2.quant_weight_scale().numel() == 10


@pytest.mark.parametrize(("bits", "threshold"), [(4, lambda w: w.abs().max()), (2, lambda w: w.abs().mean())])
def test_threshold_is_the_mean_only_at_two_bits(bits, threshold):
    layer = quant_zoo.load("lenet", weight_bit_width=bits).conv1
    expected = torch.stack([threshold(w) for w in layer.weight]) / (2 ** (bits - 1) - 1)
    torch.testing.assert_close(layer.quant_weight_scale().flatten(), expected)


def test_float_twin_carries_its_weights_over():
    twin = quant_zoo.load_float("lenet")
    model = quant_zoo.load("lenet", weight_bit_width=8)
    carry_over(twin, model)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in twin.named_parameters())


def test_weights_of_another_network_do_not_carry_over():
    with pytest.raises(KeyError, match=r"not in target \['0\.weight', '0\.bias'\]"):
        carry_over(torch.nn.Sequential(torch.nn.Linear(2, 2)), quant_zoo.load("lenet"))


def test_eight_bits_stay_near_the_float_logits():
    twin = quant_zoo.load_float("lenet").eval()
    model = quant_zoo.load("lenet", weight_bit_width=8, act_bit_width=8)
    carry_over(twin, model)
    calibrate(model, images(62 * 4), Calibration(batch_size=4))
    with torch.no_grad():
        expected, found = twin(images(32)), model(images(32))
    assert (expected - found).abs().max() < 0.03 * expected.abs().max()


def test_misspelt_override_names_the_right_one():
    with pytest.raises(UnknownOptionError, match="'wieght_bit_width'.*'weight_bit_width'"):
        quant_zoo.load("lenet", wieght_bit_width=4)


def test_an_override_without_a_role_names_the_options_that_exist():
    with pytest.raises(UnknownOptionError, match="did you mean 'act_bit_width' or 'bias_bit_width'"):
        quant_zoo.load("lenet", bit_width=4)


def test_misspelt_directive_names_the_right_one():
    with pytest.raises(UnknownOptionError, match="bit_widht.*bit_width"):
        quant_zoo.load("lenet", weight_bit_widht=4)


@pytest.mark.parametrize("value", [0, 1, 33, 4.5, True, "four"])
def test_illegal_width_is_refused(value):
    with pytest.raises(QuantConfigError, match="bit_width"):
        quant_zoo.load("lenet", weight_bit_width=value)


def test_calibration_changes_no_weight(digits):
    model = quant_zoo.load("lenet")
    before = copy.deepcopy(dict(model.named_parameters()))
    calibrate(model, digits.train_images[:256], Calibration(batch_size=64))
    assert not model.training
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("weight", "bias"):
            assert torch.equal(parameter, before[name]), name


def test_equal_seeds_give_equal_networks(digits):
    plan = Training(epochs=1, batch_size=32, learning_rate=0.01, shift=1)
    trained = []
    for _ in range(2):
        torch.manual_seed(1)
        model = quant_zoo.load_float("lenet")
        train(model, digits.train_images[:128], digits.train_labels[:128], plan, seed=5)
        trained.append(model.fc2.weight)
    assert torch.equal(*trained)


def test_steps_are_reported():
    seen = []
    plan = Training(epochs=2, batch_size=4, learning_rate=0.01)
    train(quant_zoo.load_float("lenet"), images(10), torch.zeros(10, dtype=torch.long), plan, on_step=seen.append)
    assert [(s.number, s.total, s.epoch) for s in seen] == [(1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2)]


def test_fewer_images_than_a_batch_are_refused():
    plan = Training(epochs=1, batch_size=64, learning_rate=0.01)
    with pytest.raises(ValueError, match="8 images are less than one batch of 64"):
        train(quant_zoo.load_float("lenet"), images(8), torch.zeros(8, dtype=torch.long), plan)


def test_two_bits_learn_the_digits(digits):
    """From scratch, with 2-bit weights and activations, in one short run: far above the 10 % of a guess."""
    torch.manual_seed(0)
    model = quant_zoo.load("lenet", weight_bit_width=2, act_bit_width=2, act_collect_stats_steps=10)
    plan = Training(epochs=2, batch_size=64, learning_rate=0.003)
    train(model, digits.train_images[::2], digits.train_labels[::2], plan)
    assert accuracy(model, digits.test_images, digits.test_labels) > 0.7


compilers = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", compilers)
def test_compiled_training_equals_eager(backend):
    """``fullgraph=True`` refuses graph breaks; losses and weights follow those of eager mode step by step."""
    torch.manual_seed(0)
    eager = quant_zoo.load("lenet", act_collect_stats_steps=2, input_collect_stats_steps=2)
    compiled_model = copy.deepcopy(eager)
    compiled = torch.compile(compiled_model, fullgraph=True, backend=backend)
    labels = torch.arange(8) % 10
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (eager, compiled_model)]
    for step in range(4):
        losses = []
        for model, optimizer in zip((eager, compiled), optimizers, strict=True):
            loss = F.cross_entropy(model(images(8)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4), f"step {step}"
    for (name, expected), found in zip(eager.named_parameters(), compiled_model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
