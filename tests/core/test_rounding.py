"""Rounding of accelerators, stochastic and learned rounding."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brevitas.core import rounding as rd
from brevitas.errors import QuantConfigError
from brevitas.function import dpu_round, dpu_round_ste, stochastic_round_ste

finite = st.floats(-1e6, 1e6, width=32)


def dpu_by_hand(x: float) -> float:
    if x < 0 and x - math.floor(x) == 0.5:
        return float(math.floor(x) + 1)
    return float(round(x))  # Python rounds half to even


@given(st.lists(finite | st.integers(-50, 50).map(lambda i: i + 0.5), min_size=1, max_size=20))
def test_dpu_round_sends_ties_of_negative_numbers_up(values):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    expected = [dpu_by_hand(v) for v in x.tolist()]
    assert dpu_round(x).tolist() == expected and dpu_round_ste(x).tolist() == expected
    (grad,) = torch.autograd.grad((dpu_round_ste(x) * torch.arange(1.0, len(values) + 1)).sum(), x)
    assert grad.tolist() == list(range(1, len(values) + 1))


def test_dpu_round_golden():
    x = torch.tensor([-2.5, -1.5, -0.5, -0.75, 0.5, 1.5, 2.5, float("inf")])
    assert rd.DPURoundSte()(x).tolist() == [-2.0, -1.0, 0.0, -1.0, 0.0, 2.0, 2.0, float("inf")]
    assert torch.isnan(dpu_round(torch.tensor(float("nan"))))


@given(st.lists(finite, min_size=1, max_size=20), st.floats(0, 1, exclude_max=True))
def test_stochastic_round_goes_up_where_the_draw_is_below_the_fraction(values, u):
    x = torch.tensor(values, dtype=torch.float64)
    rounded = stochastic_round_ste(x, torch.full_like(x, u))
    for value, got in zip(x.tolist(), rounded.tolist(), strict=True):
        low = math.floor(value)
        assert got == low + (1 if u < value - low else 0)


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_stochastic_rounding_has_the_input_as_its_expectation(seed):
    torch.manual_seed(0)
    module = rd.StochasticRoundSte(seed=seed)
    fractions = torch.tensor([-1.75, -0.5, -0.1, 0.0, 0.3, 0.9, 2.25])
    n = 20000
    y = module(fractions.expand(n, -1))
    # Six standard deviations of the mean of n draws of variance p (1 - p).
    p = fractions - fractions.floor()
    assert bool(((y.mean(0) - fractions).abs() <= 6 * (p * (1 - p) / n).sqrt() + 1e-6).all())
    assert bool(((y == fractions.floor()) | (y == fractions.floor() + 1)).all())
    # Neighbours are drawn independently: so is a draw from the one beside it.
    draws = module(torch.full((n,), 0.5)) * 2 - 1
    assert abs(float((draws[1:] * draws[:-1]).mean())) < 6 / n**0.5
    again = module(torch.full((n,), 0.5)) * 2 - 1
    assert abs(float((draws * again).mean())) < 6 / n**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeded_draws_are_uniform(dtype):
    u = rd.StochasticRoundSte(seed=1).uniform(torch.zeros(100000, dtype=dtype))
    assert u.dtype == dtype and float(u.min()) >= 0.0 and float(u.max()) < 1.0
    counts = torch.histc(u, bins=50, min=0.0, max=1.0)
    assert float(((counts - 2000.0) ** 2 / 2000.0).sum()) < 49 + 6 * 98**0.5  # chi-square with 49 degrees of freedom


def test_a_seed_makes_the_sequence_reproducible():
    x = torch.full((64,), 0.5)

    def run(module, calls=3):
        return torch.stack([module(x) for _ in range(calls)])

    first = run(rd.StochasticRoundSte(seed=5))
    torch.manual_seed(123)
    torch.rand(10)
    assert torch.equal(first, run(rd.StochasticRoundSte(seed=5)))
    assert not torch.equal(first, run(rd.StochasticRoundSte(seed=6)))
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    free = run(rd.StochasticRoundSte())
    torch.manual_seed(0)
    assert torch.equal(free, run(rd.StochasticRoundSte()))


def test_draws_continue_after_a_load_and_in_a_copy():
    x = torch.full((64,), 0.5)
    module = rd.StochasticRoundSte(seed=5)
    module(x)
    twin, loaded = copy.deepcopy(module), rd.StochasticRoundSte(seed=5)
    loaded.load_state_dict(module.state_dict())
    expected = module(x)
    assert torch.equal(twin(x), expected) and torch.equal(loaded(x), expected)
    rd.StochasticRoundSte(seed=5).load_state_dict(rd.StochasticRoundSte().state_dict())  # keys of a run without a seed


def test_stochastic_rounding_in_eval():
    x = torch.tensor([0.5, 1.5, 2.4])
    assert rd.StochasticRoundSte().eval()(x).tolist() == [0.0, 2.0, 2.0]
    free = rd.StochasticRoundSte(deterministic_inference=False, seed=0).eval()
    assert len({tuple(free(x).tolist()) for _ in range(50)}) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stochastic_rounding_is_straight_through_in_every_dtype(dtype):
    x = torch.tensor([0.5, -3.25], dtype=dtype, requires_grad=True)
    y = rd.StochasticRoundSte(seed=0)(x)
    y.backward(torch.tensor([2.0, -1.0], dtype=dtype))
    assert y.dtype == dtype and x.grad.tolist() == [2.0, -1.0]


def hard_sigmoid(p: float) -> float:
    return min(max(1.2 / (1 + math.exp(-p)) - 0.1, 0.0), 1.0)


SOFT = {
    "hard": (rd.LearnedRoundHardSigmoid, hard_sigmoid),
    "sigmoid": (rd.LearnedRoundSigmoid, lambda p: 1 / (1 + math.exp(-p))),
    "cool": (lambda: rd.LearnedRoundSigmoid(0.25), lambda p: 1 / (1 + math.exp(-p / 0.25))),
}


@pytest.mark.parametrize("name", sorted(SOFT))
@given(values=st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-4, 4, width=32)), min_size=1, max_size=8))
def test_soft_learned_rounding_by_formula(name, values):
    build, h = SOFT[name]
    x = torch.tensor([v[0] for v in values], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([v[1] for v in values], dtype=torch.float64)
    module = rd.LearnedRoundSte(build(), p).double()
    module.value.data = p.clone()
    y = module(x)
    expected = [math.floor(a) + h(b) for a, b in zip(x.tolist(), p.tolist(), strict=True)]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    step = 1e-6
    for i, b in enumerate(p.tolist()):
        slope = (h(b + step) - h(b - step)) / (2 * step)
        kink = name == "hard" and min(abs(hard_sigmoid(b)), abs(1 - hard_sigmoid(b))) < 1e-5
        assert kink or abs(float(module.value.grad[i]) - slope) < 1e-6
    module.eval()
    hard = [math.floor(a) + (1 if b > 0 else 0) for a, b in zip(x.tolist(), p.tolist(), strict=True)]
    assert module(x).tolist() == hard


def test_identity_learned_rounding():
    p = torch.tensor([0.3, -0.7, 0.0])
    module = rd.LearnedRoundSte(rd.LearnedRoundIdentity(), p)
    x = torch.tensor([0.3, 0.9, 2.5], requires_grad=True)
    for training in (True, False):
        assert module.train(training)(x).tolist() == [1.0, 0.0, 2.0]  # 0.6, 0.4, 2.5
    module(x).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    assert module.value.grad.tolist() == [1.0, 0.0, 3.0]  # nothing where p is clamped


@pytest.mark.parametrize("impl", [rd.LearnedRoundHardSigmoid, rd.LearnedRoundSigmoid, rd.LearnedRoundIdentity])
def test_init_from_starts_at_rounding_to_nearest(impl):
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 5
    module = rd.LearnedRoundSte(impl(), torch.zeros(50))
    module.init_from(x)
    if impl is not rd.LearnedRoundIdentity:
        torch.testing.assert_close(module(x), x, rtol=0, atol=2e-4)
    assert torch.equal(module.eval()(x), x.round())


def test_state_dict_keys():
    assert list(rd.LearnedRoundSte(rd.LearnedRoundSigmoid(), torch.zeros(2)).state_dict()) == ["value"]
    assert list(rd.StochasticRoundSte().state_dict()) == []


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: rd.StochasticRoundSte(seed=-1), ["seed=-1", "integer from 0"]),
        (lambda: rd.StochasticRoundSte(seed=1.5), ["seed=1.5", "not an integer"]),
        (lambda: rd.StochasticRoundSte(deterministic_inference=1), ["deterministic_inference=1", "True or False"]),
        (lambda: rd.LearnedRoundSigmoid(0.0), ["temperature=0.0", "out of range"]),
        (lambda: rd.LearnedRoundHardSigmoid(learned_round_zeta=1.0), ["learned_round_zeta=1.0"]),
        (lambda: rd.LearnedRoundHardSigmoid(learned_round_gamma=0.1), ["learned_round_gamma=0.1"]),
        (lambda: rd.LearnedRoundSte(rd.LearnedRoundSigmoid, torch.zeros(1)), ["learned_round_impl", "instance"]),
        (lambda: rd.LearnedRoundSte(rd.LearnedRoundSigmoid(), 0.0), ["learned_round_init=0.0", "no parameter"]),
        (
            lambda: rd.LearnedRoundSte(rd.LearnedRoundSigmoid(), torch.zeros(3), [torch.zeros(2)]),
            ["learned_round_init has shape (3,)", "(2,)"],
        ),
        (
            lambda: rd.LearnedRoundSte(rd.LearnedRoundSigmoid(), 0.0, [torch.zeros(2), torch.zeros(2)]),
            ["2 layers share", "quantizer of its own"],
        ),
        (lambda: rd.LearnedRoundSte(rd.LearnedRoundSigmoid(), torch.tensor([float("nan")])), ["not finite"]),
    ],
)
def test_illegal_arguments(build, says):
    with pytest.raises(QuantConfigError) as error:
        build()
    for part in says:
        assert part in str(error.value)
