import doctest
import importlib
import pkgutil

import pytest

import brevitas.quant_tensor as package

MODULES = [
    package.__name__,
    *(f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_has_an_example():
    without = [
        name
        for name in package.__all__
        if name != "CodeRange"  # an alias of a type
        if ">>>" not in (getattr(package, name).__doc__ or "")
    ]
    assert not without
