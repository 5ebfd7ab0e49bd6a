"""Flat tables: inheritance, `let`, `&`, `in`, `dir`."""

import inspect
import pydoc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import DependencyError, Injector, declarations, this, value

NAMES = ["a", "b", "c", "d"]


@st.composite
def hierarchies(draw):
    """Classes in order of making: for each the indices of its bases among the earlier ones, and its own values."""
    classes = []
    for index in range(draw(st.integers(2, 8))):
        bases = draw(st.lists(st.integers(0, index - 1), unique=True, max_size=3)) if index else []
        own = draw(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 99), max_size=3))
        classes.append((bases, own))
    return classes


def build(classes):
    made = []
    for index, (bases, own) in enumerate(classes):
        made.append(type(Injector)(f"C{index}", tuple(made[base] for base in bases) or (Injector,), dict(own)))
    return made


def model(classes):
    """The specification: flat tables, left-most base wins, then the body."""
    flat, declarers = [], []
    for index, (bases, own) in enumerate(classes):
        table, owners = {}, {}
        for base in reversed(bases):
            table.update(flat[base])
            for name, found in declarers[base].items():
                owners.setdefault(name, set()).update(found)
        table.update({name: (obj, index) for name, obj in own.items()})
        for name in own:
            owners.setdefault(name, set()).add(index)
        flat.append(table)
        declarers.append(owners)
    return flat, declarers


@given(hierarchies())
def test_merge_is_on_flat_tables_left_most_base_first(classes):
    made = build(classes)
    flat, declarers = model(classes)
    for injector, table, owners in zip(made, flat, declarers, strict=True):
        found = declarations(injector)
        assert {name: (each.obj, made.index(each.owner)) for name, each in found.items()} == table
        assert dir(injector) == sorted(table)
        for name, (obj, _) in table.items():
            assert getattr(injector, name) == obj
            chain = [found[name].owner, *(each.owner for each in found[name].overrode)]
            # Nothing that any base declared is lost, and nothing is named twice.
            assert len(chain) == len(set(chain))
            assert {made.index(owner) for owner in chain} == owners[name]


@given(hierarchies(), st.data())
def test_order_of_bases_that_python_cannot_linearise_is_legal(classes, data):
    made = build(classes)
    flat, _ = model(classes)
    left, right = data.draw(st.sampled_from(range(len(made)))), data.draw(st.sampled_from(range(len(made))))
    both = made[left] & made[right]
    expected = {**flat[right], **flat[left]}
    assert {name: getattr(both, name) for name in dir(both)} == {name: obj for name, (obj, _) in expected.items()}
    assert issubclass(both, made[left]) and issubclass(both, made[right])


def test_the_example_of_the_specification():
    class X(Injector):
        v = 1

    class A(X):
        pass

    class B(X):
        v = 2

    class C(A, B):
        pass

    assert C.v == 1
    assert [each.owner for each in declarations(C)["v"].overrode] == [B]
    assert (B & A).v == 2


def test_nearest_overridden_declaration_comes_first():
    class A(Injector):
        v = 1

    class B(A):
        v = 2

    C = B.let(v=3)
    D = C.let(v=4)
    assert [each.obj for each in declarations(D)["v"].overrode] == [3, 2, 1]


def test_solver_last_among_the_bases_is_overridden_by_explicit_attributes():
    class Solver(Injector):
        @value
        def scaling(kind):
            return f"solved {kind}"

    class Preset(Solver):
        kind = "x"

    class Own(Injector):
        scaling = "mine"

    class Q(Own, Preset):
        pass

    assert Q.scaling == "mine"
    assert Preset.scaling == "solved x"


def test_let_makes_a_subclass_of_the_same_name_and_leaves_the_original():
    class Q(Injector):
        """Documented."""

        a = 1

    made = Q.let(a=2, b=3)
    assert (made.a, made.b, Q.a) == (2, 3, 1)
    assert "b" not in Q
    assert issubclass(made, Q)
    assert (made.__name__, made.__qualname__, made.__module__) == (Q.__name__, Q.__qualname__, Q.__module__)


def test_let_takes_the_names_that_methods_usually_take():
    made = Injector.let(cls=1, self=2, name=3, overrides=4)
    assert (made.cls, made.self, made.name, made.overrides) == (1, 2, 3, 4)


def test_and_is_a_class_with_both_bases():
    class A(Injector):
        a = 1

    class B(Injector):
        a = 2
        b = 3

    both = A & B
    assert both.__bases__ == (A, B)
    assert both.__name__ == "A"
    assert (both.a, both.b) == (1, 3)
    assert (A & A).a == 1
    with pytest.raises(TypeError):
        A & int


def test_contains_resolves_nothing():
    class Q(Injector):
        @value
        def fails():
            raise AssertionError("was resolved")

        dangling = this.nowhere

    assert "fails" in Q
    assert "dangling" in Q
    assert "nowhere" not in Q


def test_type_with_three_arguments_makes_an_injector():
    made = type(Injector)("Made", (Injector,), {"a": 1})
    assert made.a == 1
    assert type("Plain", (Injector,), {"b": this.c, "c": 4}).b == 4


def test_bases_must_be_injectors_and_differ():
    with pytest.raises(DependencyError, match=r"injector 'Q' \(.*test_composition.py:\d+\).*'int'"):

        class Q(Injector, int):
            pass

    with pytest.raises(DependencyError, match="twice: Injector, Injector"):
        type("R", (Injector, Injector), {})


def test_python_tools_that_look_at_classes_keep_working():
    class Q(Injector):
        """Documented."""

        bit_width = 8
        broken = this.nowhere

    assert "Documented." in pydoc.render_doc(Q)
    assert inspect.unwrap(Q) is Q
    assert inspect.isclass(Q)
    assert not hasattr(Q, "__len__")
    assert Q in {Q: 1}
    assert repr(Q).startswith("<class ")
