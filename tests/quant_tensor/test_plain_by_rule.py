"""What cannot keep the grid is a plain tensor: every function of torch that can be called without options."""

import contextlib
import warnings

import pytest
import torch
from grids import assert_on_grid, make
from torch.overrides import get_testing_overrides, resolve_name

from brevitas.errors import QuantMetadataError
from brevitas.quant_tensor import QuantTensor, dropped_by, keeps_grid
from brevitas.quant_tensor.dispatch import NARY, UNARY

# The rows of the specification, by the name that the functional form, the method and the module share.
MOVES = """
    view view_as reshape reshape_as flatten unflatten ravel transpose swapaxes swapdims t permute movedim moveaxis
    squeeze unsqueeze expand expand_as broadcast_to contiguous clone detach chunk split split_with_sizes tensor_split
    unbind narrow select index_select getitem __getitem__ pixel_shuffle pixel_unshuffle
    to cpu cuda type_as float double half bfloat16
"""
KEEPS = """
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices relu interpolate upsample upsample_nearest pad
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
"""
SNAPS = "hardtanh relu6 clamp clip clamp_min clamp_max"
ALGEBRA_OF_ONE = "neg negative abs absolute pos positive"
ALGEBRA_OF_SEVERAL = "add sub subtract mul multiply matmul __matmul__ cat concat concatenate stack"
RULES = {*" ".join((MOVES, KEEPS, SNAPS, ALGEBRA_OF_ONE)).split()}


def test_the_functions_that_may_keep_a_grid_are_those_of_the_rules():
    registered = {name for name, handler in UNARY.items() if handler.__name__ != "_refuse_in_place"}
    assert registered == RULES
    assert set(NARY) == set(ALGEBRA_OF_SEVERAL.split())
    assert keeps_grid(torch.relu) and keeps_grid(torch.cat) and not keeps_grid(torch.relu_)
    assert not keeps_grid(torch.sigmoid) and not keeps_grid(torch.Tensor.add_)


def quant_tensor():
    return make(torch.arange(1, 17).view(1, 4, 2, 2), 0.5, bit_width=6)


# Several shapes of a call, so that more functions accept one of them.
CALLS = (
    lambda f, x: f(x),
    lambda f, x: f(x, x),
    lambda f, x: f(x, 1),
    lambda f, x: f(x, 1, 0),
    lambda f, x: f(x, (1, 1)),
    lambda f, x: f([x, x]),
    lambda f, x: f(x, x, x),
    lambda f, x: f(x[0, 0]),
    lambda f, x: f(x[0, 0], x[0, 0]),
)
#: Not functions of values: they ask about, convert or draw a tensor; ``int`` is QuantTensor's own.
OTHER = """
    __get__ register_hook empty_like new_empty new_empty_strided int chalf to_sparse to_mkldnn
    fbgemm_pack_gemm_matrix_fp16
""".split()


def as_method(name):
    def method(x, *args):
        return getattr(x, name)(*args)

    method.__name__ = name
    return method


def functions():
    """Every function and method of torch that can be overridden, without operators and in-place functions."""
    for func in get_testing_overrides():
        name = func.__name__
        if name in OTHER or name.startswith("_") or name.endswith("_") or "quantize" in name:
            continue
        path = resolve_name(func) or name
        yield path, as_method(name) if path.startswith("torch.Tensor.") else func


def outcomes(func):
    """Each shape of call that runs on a plain tensor, with what it gives there."""
    for call in CALLS:
        torch.manual_seed(0)
        with contextlib.suppress(Exception):
            result = call(func, quant_tensor().value.clone())
            if leaves(result):
                yield call, result


def leaves(result):
    if isinstance(result, (list, tuple)):
        return [leaf for each in result for leaf in leaves(each)]
    return [result] if isinstance(result, (torch.Tensor, QuantTensor)) else []


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    TABLE = {path: (func, found) for path, func in functions() if (found := list(outcomes(func)))}


def test_the_table_is_long():
    assert len(TABLE) > 500


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", TABLE)
def test_a_function_follows_its_rule(path):
    func, found = TABLE[path]
    for call, expected in found:
        torch.manual_seed(0)
        result = call(func, quant_tensor())
        assert len(leaves(result)) == len(leaves(expected))
        for mine, plain in zip(leaves(result), leaves(expected), strict=True):
            assert_rule(func, mine, plain)


def assert_rule(func, mine, plain):
    value = mine.value if isinstance(mine, QuantTensor) else mine
    assert value.shape == plain.shape and value.dtype == plain.dtype
    if func.__name__ not in SNAPS.split():
        # Nearly: solvers differ in the last bit from one address in memory to another.
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-5, equal_nan=True)
    if not keeps_grid(func):
        assert type(mine) is torch.Tensor
        if mine.is_floating_point():
            assert dropped_by(mine) is not None
    elif isinstance(mine, QuantTensor) and "dropout" not in func.__name__:
        assert_on_grid(mine)


# --- Writing, asking, converting -------------------------------------------------------------------------------------


def assign(qt):
    qt[0] = 1.0


def delete(qt):
    del qt[0]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (assign, r"qt\[...\] = ...: a QuantTensor is immutable.*qt\.value\.clone\(\), and quantize that"),
        (delete, r"del qt\[...\]: a QuantTensor is immutable"),
        (lambda qt: qt.index_put_((torch.tensor([0]),), torch.ones(4, 2, 2)), "Use index_put, which returns a new"),
        (lambda qt: torch.add(qt, qt, out=qt), r"Omit out="),
    ],
)
def test_writing_to_elements_is_refused(action, message):
    qt = quant_tensor()
    before = qt.value.clone()
    with pytest.raises(QuantMetadataError, match=message):
        action(qt)
    assert torch.equal(qt.value, before)


def test_in_place_operators_make_new_tensors_by_the_rules():
    kept = qt = quant_tensor()
    before = qt.value.clone()
    qt += qt
    assert isinstance(qt, QuantTensor) and torch.equal(qt.value, 2 * before)
    qt -= kept
    qt *= kept
    assert isinstance(qt, QuantTensor) and torch.equal(qt.value, before * before)
    qt += 1
    assert type(qt) is torch.Tensor and torch.equal(kept.value, before)


def test_numbers_of_one_element():
    one = quant_tensor()[0, 0, 1, 0]
    assert (int(one), float(one), complex(one), one.item(), bool(one)) == (1, 1.5, 1.5, 1.5, True)
    assert one.int().item() == 3  # the code; int() above is of the value
    assert f"{one:.2f}" == "1.50" and f"{quant_tensor()}".startswith("QuantTensor(value=")
    with pytest.raises(TypeError, match="unsupported format string"):
        f"{quant_tensor():.2f}"


def test_membership_iteration_and_length():
    qt = quant_tensor()
    assert 1.5 in qt and 1.4 not in qt and len(qt) == 1
    value, scale, *_ = qt
    assert value is qt.value and scale is qt.scale and len([*qt]) == 6
