import copy
import pickle
import warnings

import pytest

from brevitas.errors import BrevitasError, ExportError, MissingPackageError
from brevitas.export.packages import require
from brevitas.export.violations import (
    CODES,
    ExportViolationError,
    ExportWarning,
    MissingExportPackageError,
    Violation,
    raise_violations,
)


def violation(code="E11", **kwargs):
    values = {
        "found": "bit width 12",
        "required": "8",
        "fix": "set bit_width=8",
        "layer": "a.b",
        "layer_class": "QuantX",
    }
    return Violation(code, "qdq", **{**values, **kwargs})


def test_a_line_holds_code_target_layer_found_required_and_fix():
    assert str(violation()) == "E11 [qdq] QuantX 'a.b': found bit width 12; required 8; fix: set bit_width=8"
    assert "(the model itself)" in str(violation(layer=""))
    assert "model input 1" in str(violation(layer=None, place="model input 1"))


def test_every_code_of_the_specification_is_known():
    expected = {*range(1, 7), *range(10, 16), *range(20, 29)}
    assert {int(code[1:]) for code in CODES if code.startswith("E")} == expected
    assert "W30" in CODES
    with pytest.raises(ValueError, match="E99"):
        violation("E99")


def test_all_violations_come_in_one_error_one_line_each():
    found = [violation(), violation("E27", layer="c"), violation()]
    with pytest.raises(ExportError) as caught:
        raise_violations(found)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3  # a heading, and each violation once
    assert lines[1].strip() == str(found[0])
    assert lines[2].strip() == str(found[1])
    assert caught.value.violations == (found[0], found[1])
    assert isinstance(caught.value, (BrevitasError, RuntimeError))


def test_warnings_let_the_export_proceed():
    with pytest.warns(ExportWarning, match="W30"):
        raise_violations([violation("W30")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raise_violations([])


def test_errors_pickle_and_copy_with_their_violations():
    error = ExportViolationError([violation()])
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert other.violations == error.violations
        assert str(other) == str(error)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(MissingExportPackageError) as caught:
        require("json", "no_such_package_at_all", target="qdq")
    message = str(caught.value)
    assert "E06 [qdq]" in message and "pip install no_such_package_at_all" in message and "json" not in message
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, MissingPackageError)
    assert isinstance(caught.value, ExportError)
