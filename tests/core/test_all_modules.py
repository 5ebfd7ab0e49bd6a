"""What holds for every core module: TorchScript, torch.compile, copies, pickles and loading, over one catalogue."""

import copy
import io
import pickle

import pytest
import torch
from core_catalogue import CASES as CORE
from core_walk import steps_of
from extension_catalogue import CASES as EXTENSIONS
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

CASES = {**CORE, **EXTENSIONS}
EVERY = sorted(CASES)
# Compiling takes seconds a module; the quick run takes those whose graphs have phases in them.
COMPILED_QUICKLY = {"RescalingIntQuant/act/shifted", "RescalingIntQuant/weight"}


def assert_same(left, right, exact=True):
    assert len(left) == len(right)
    for step, (a, b) in enumerate(zip(left, right, strict=True)):
        assert a.keys() == b.keys()
        for key in a:
            where = f"step {step}, {key}: {a[key]} != {b[key]}"
            assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, where
            if exact:
                assert torch.equal(a[key], b[key]), where
            else:
                torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-6, equal_nan=False, msg=where)


def assert_finite(observed):
    for step, seen in enumerate(observed):
        for key, tensor in seen.items():
            assert torch.isfinite(tensor.double()).all(), f"step {step}, {key}: {tensor}"


@pytest.mark.parametrize("name", EVERY)
def test_script_equals_eager_bit_for_bit(name):
    case = CASES[name]
    module = case.build()
    scripted_from = copy.deepcopy(module)
    eager = steps_of(case, module)
    assert_finite(eager)
    assert_same(eager, steps_of(case, scripted_from, torch.jit.script(scripted_from)))


@pytest.mark.parametrize(
    "name", [n if n in COMPILED_QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
def test_compiled_equals_eager(name):
    case = CASES[name]
    module = case.build()
    compiled_from = copy.deepcopy(module)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(compiled_from, fullgraph=True, backend=counter)
    assert_same(steps_of(case, module), steps_of(case, compiled_from, compiled), exact=False)
    assert counter.frame_count <= 2, "one graph for training and one for eval"


@pytest.mark.parametrize("name", EVERY)
def test_copies_and_pickles_continue_identically(name):
    case = CASES[name]
    module = case.build()
    steps_of(case, module, steps=2)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    twins.append(torch.load(buffer, weights_only=False))
    expected = steps_of(case, module)
    for twin in twins:
        assert_same(expected, steps_of(case, twin))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("trained", [0, 1, 4])
def test_a_strict_load_continues_identically_and_in_place(name, trained):
    case = CASES[name]
    source, target = case.build(), case.build()
    assert set(source.state_dict()) == set(target.state_dict())
    if trained:
        steps_of(case, source, steps=trained + 1)
    held = {n: id(p) for n, p in target.named_parameters()}
    target.load_state_dict(source.state_dict(), strict=True)
    assert {n: id(p) for n, p in target.named_parameters()} == held
    assert_same(steps_of(case, source), steps_of(case, target))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_finite_and_keep_the_dtype(name, dtype):
    case = CASES[name]
    module = case.build().to(dtype)

    def inputs():
        return tuple(x.to(dtype) for x in case.inputs())

    observed = steps_of(type(case)(case.build, inputs), module)
    assert_finite(observed)
    for parameter in module.parameters():
        assert parameter.dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_all_zero_input_gives_finite_values_and_gradients(name):
    if name == "LogTwo":
        pytest.skip("log2 of 0 is -inf by definition")
    case = CASES[name]

    def inputs():
        given = case.inputs()
        return tuple(torch.zeros_like(x) if x.ndim else x for x in given)

    assert_finite(steps_of(type(case)(case.build, inputs), case.build()))


@pytest.mark.parametrize(
    "name", [n if n in COMPILED_QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
@pytest.mark.parametrize("strict", [True, False])
def test_exported_eval_gives_the_values_of_eager(name, strict):
    if strict and "several" in name:
        # Strict export knows only parameters that some module owns. In a model the layers own the tracked ones, which
        # tests/nn/test_state.py exports; here nobody does, and torch says so with a KeyError.
        strict = False
    case = CASES[name]
    module = case.build()
    for trained in (0, 5):
        if trained:
            steps_of(case, module, steps=trained)
        module.eval()
        with torch.no_grad():
            exported = torch.export.export(module, case.inputs(), strict=strict).module()
            expected, got = module(*case.inputs()), exported(*case.inputs())
        pairs = zip(expected, got, strict=True) if isinstance(expected, tuple) else [(expected, got)]
        for want, value in pairs:
            torch.testing.assert_close(value, want, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", [n for n in EVERY if "Runtime" in n or "act" in n or "delayed" in n])
def test_gradient_checkpointing_counts_a_batch_once(name, use_reentrant):
    case = CASES[name]
    module = case.build()
    repeated_from = copy.deepcopy(module)

    def repeated(*inputs):
        if not repeated_from.training:
            return repeated_from(*inputs)
        return checkpoint(repeated_from, *inputs, use_reentrant=use_reentrant)

    assert_same(steps_of(case, module), steps_of(case, repeated_from, repeated))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_quantizer_pays_for_its_statistic_only_while_it_collects(backend):
    case = CASES["RescalingIntQuant/act"]
    module = case.build()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)

    def statistics_of_a_step():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            (x,) = case.inputs()
            compiled(x.requires_grad_())[0].sum().backward()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::kthvalue")

    statistics_of_a_step()  # compiles
    assert statistics_of_a_step() > 0
    assert [statistics_of_a_step() for _ in range(2)] == [0, 0]
    assert module.scaling_impl.initialised and module.scaling_impl.counter.item() == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RescalingIntQuant/act/shifted", "RescalingIntQuant/weight/channel"])
def test_inductor_equals_eager(name):
    case = CASES[name]
    module = case.build()
    compiled_from = copy.deepcopy(module)
    torch._dynamo.reset()
    assert_same(steps_of(case, module), steps_of(case, compiled_from, torch.compile(compiled_from)), exact=False)


def test_memory_formats_compile_to_one_graph_each():
    case = CASES["RescalingIntQuant/act"]
    module = case.build()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    eager = copy.deepcopy(module)
    for step in range(4):
        x = case.inputs()[0].to(memory_format=torch.channels_last).requires_grad_()
        y = x.detach().clone().requires_grad_()
        compiled(x)[0].sum().backward()
        eager(y)[0].sum().backward()
        torch.testing.assert_close(x.grad, y.grad, msg=f"step {step}")
