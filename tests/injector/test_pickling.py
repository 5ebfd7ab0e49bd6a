"""Pickle and copy of injector classes, also into a fresh process."""

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from injector import (
    DependencyError,
    Injector,
    InjectorPicklingError,
    SourceLocation,
    declarations,
    override,
    resolve,
    this,
    value,
)

ROOT = Path(__file__).parents[2]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

MODULE = """
from injector import Injector, this, value

class Part:
    def __init__(self, bit_width, scale=1):
        self.bit_width, self.scale = bit_width, scale

def double(bit_width):
    return 2 * bit_width

@value
def triple(bit_width):
    return 3 * bit_width

class Solver(Injector):
    part = Part
    @value
    def levels(bit_width):
        return 2 ** bit_width
    class sub(Injector):
        up = (this << 1).bit_width
        @value
        def plus(up):
            return up + 1

class Preset(Solver):
    bit_width = 8
    again = this.part.bit_width
    nested = this.sub.plus

class Namespace:
    class Hidden(Preset):
        bit_width = 5

Made = Preset.let(bit_width=3)
Both = Preset.let(bit_width=7) & Solver

def local_class():
    class Local(Preset):
        '''Documented.'''
        bit_width = 6
        linked = this.levels
    return Local
"""


class Held:
    """Stands for a layer: it holds an injector that holds it."""

    def __init__(self):
        self.quantizer = Injector.let(module=self, bit_width=4)


class Base(Injector):
    bit_width = 8


def function_at_module_level(bit_width):
    return bit_width + 1


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"pickling_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__(name)
    del sys.modules[name]


def in_fresh_process(module, injector, expression):
    """`repr` of an expression over the unpickled `Q`, evaluated by another interpreter."""
    data = pickle.dumps(injector)
    code = f"import pickle, injector\nQ = pickle.loads({data!r})\nprint(repr({expression}))"
    paths = [str(ROOT), str(Path(module.__file__).parent)]
    code = f"import sys\nsys.path[:0] = {paths!r}\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_importable_class_is_the_same_class(module, protocol):
    for injector in (module.Preset, module.Namespace.Hidden, Injector, declarations(module.Solver)["sub"].obj):
        assert pickle.loads(pickle.dumps(injector, protocol)) is injector


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_let_is_stored_as_named_base_and_overrides(module, protocol):
    injector = module.Preset.let(bit_width=4, note=("a", 1)).let(bit_width=2)
    made = pickle.loads(pickle.dumps(injector, protocol))
    assert made is not injector
    assert made.__bases__[0].__bases__ == (module.Preset,)
    assert (made.bit_width, made.note, made.part.bit_width, made.levels) == (2, ("a", 1), 2, 4)
    assert (made.__name__, made.__qualname__, made.__module__) == ("Preset", "Preset", module.__name__)
    before, after = declarations(injector), declarations(made)
    assert {name: (each.location, each.origin, each.obj) for name, each in after.items()} == {
        name: (each.location, each.origin, each.obj) for name, each in before.items()
    }
    assert [each.obj for each in after["bit_width"].overrode] == [4, 8]


def test_only_the_overrides_are_stored(module):
    assert len(pickle.dumps(module.Preset.let(bit_width=4))) < 700


def test_importable_values_links_and_classes_in_overrides(module):
    injector = module.Preset.let(
        one=value(module.double), two=module.triple, three=declarations(module.Solver)["levels"].obj, four=this.one,
        part=module.Part, kept_class=module.Part, five=(this << 1).x["k"],
    )  # fmt: skip
    made = pickle.loads(pickle.dumps(injector))
    assert (made.one, made.two, made.three, made.four) == (16, 24, 256, 16)
    assert made.kept_class is module.Part
    assert declarations(made)["two"].obj is module.triple
    assert repr(declarations(made)["five"].obj) == "(this << 1).x['k']"


def test_fresh_process(module):
    show = "(Q.bit_width, Q.part.bit_width, Q.levels, Q.again, Q.nested)"
    assert in_fresh_process(module, module.Preset, show) == "(8, 8, 256, 8, 9)"
    assert in_fresh_process(module, module.Preset.let(bit_width=4), show) == "(4, 4, 16, 4, 5)"
    assert in_fresh_process(module, module.Made, show) == "(3, 3, 8, 3, 4)"
    assert in_fresh_process(module, module.Both, show) == "(7, 7, 128, 7, 8)"
    assert in_fresh_process(module, module.local_class(), show) == "(6, 6, 64, 6, 7)"
    assert in_fresh_process(module, module.Preset.let(two=module.triple), "Q.two") == "24"
    assert in_fresh_process(module, module.Preset.let(bit_width=3).sub, "(Q.up, Q.plus)") == "(3, 4)"


def test_class_that_is_not_importable_is_stored_as_its_table(module):
    local = module.local_class()
    made = pickle.loads(pickle.dumps(local))
    assert made is not local
    assert made.__bases__ == (module.Preset,)
    assert made.__doc__ == "Documented."
    assert dir(made) == dir(local)
    assert (made.bit_width, made.linked) == (6, 64)
    assert declarations(made)["linked"].origin == "body"
    assert declarations(made)["linked"].location == declarations(local)["linked"].location


def test_combined_classes(module):
    both = module.Preset.let(bit_width=2) & module.local_class()
    made = pickle.loads(pickle.dumps(both))
    assert (made.bit_width, made.linked) == (2, 4)
    assert [each.obj for each in declarations(made)["bit_width"].overrode] == [8, 6]


def test_one_class_stays_one_class_within_a_pickle(module):
    injector = module.Preset.let(bit_width=4)
    first, second, derived = pickle.loads(pickle.dumps([injector, injector, injector.let(a=1)]))
    assert first is second
    assert derived.__bases__ == (first,)


def test_name_that_now_means_another_class_is_not_used(module):
    original = module.Preset
    module.Preset = original.let(bit_width=2)
    assert pickle.loads(pickle.dumps(module.Preset)) is module.Preset
    assert pickle.loads(pickle.dumps(original)).bit_width == 8


def test_circle_between_an_injector_and_what_it_holds():
    held = pickle.loads(pickle.dumps(Held()))
    assert held.quantizer.module is held
    quantizer = pickle.loads(pickle.dumps(Held().quantizer))
    assert quantizer.module.quantizer is quantizer
    assert quantizer.bit_width == 4


def test_value_that_cannot_be_imported_is_named():
    made = Base.let(levels=value(lambda bit_width: 2**bit_width))
    with pytest.raises(InjectorPicklingError) as caught:
        pickle.dumps({"q": made})
    text = str(caught.value)
    assert isinstance(caught.value, DependencyError) and isinstance(caught.value, pickle.PicklingError)
    assert "injector 'Base'" in text and "@value 'levels'" in text and "lambda" in text and f"{__file__}:" in text
    assert "module level" in text

    class Local(Base):
        @value
        def levels(bit_width):
            return 2**bit_width

    with pytest.raises(InjectorPicklingError, match="injector 'Local'.*@value 'levels'.*Local.levels"):
        pickle.dumps(Local)
    with pytest.raises(InjectorPicklingError, match="Local.levels"):
        pickle.dumps(declarations(Local)["levels"].obj)
    with pytest.raises(InjectorPicklingError, match="@value 'levels'"):
        pickle.dumps(Local.let(bit_width=3))
    assert pickle.loads(pickle.dumps(Base.let(x=value(function_at_module_level)))).x == 9


def test_places_survive():
    made = override(Base, {"bit_width": 4}, SourceLocation("recipe.yaml", 3))
    again = pickle.loads(pickle.dumps(made))
    assert str(declarations(again)["bit_width"]) == "let on Base, recipe.yaml:3"
    assert resolve(again, "bit_width").records["bit_width"].declaration.overrode[0].owner is Base


def test_copies_of_a_class_are_the_class():
    made = Base.let(bit_width=4)
    assert copy.copy(made) is made
    assert copy.deepcopy(made) is made
    assert copy.deepcopy({"q": made, "again": [made]})["again"][0] is made


def test_links_and_values_can_be_copied_and_pickled():
    link = this.x.y[0]
    for made in (copy.copy(link), copy.deepcopy(link), pickle.loads(pickle.dumps(link))):
        assert repr(made) == "this.x.y[0]"
        assert Injector.let(a=made, x=Held, y=1).let(x=type("X", (), {"y": [5]})).a == 5
    declared = value(function_at_module_level)
    for made in (copy.copy(declared), copy.deepcopy(declared), pickle.loads(pickle.dumps(declared))):
        assert made.__function__ is function_at_module_level


def test_script_run_as_main(tmp_path):
    """Classes of `__main__` are found by name within the process, as Python does for every class."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import pickle, sys
        from injector import Injector, value
        class Q(Injector):
            bit_width = 8
            @value
            def levels(bit_width):
                return 2 ** bit_width
        assert pickle.loads(pickle.dumps(Q)) is Q
        print(pickle.loads(pickle.dumps(Q.let(bit_width=3))).levels)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout.strip(), done.stderr) == ("8", "")
