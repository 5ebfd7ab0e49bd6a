"""Every refusal names the injector, the place in the file, the attributes on the way, and the remedy."""

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import (
    DependencyError,
    FrozenInjectorError,
    Injector,
    UnknownAttributeError,
    declarations,
    suggest,
    this,
    value,
)


class Needs:
    def __init__(self, bit_width):
        pass


class Loop:
    def __init__(self, loop):
        pass


class OptionalLoop:
    def __init__(self, back=None):
        pass


class Raises:
    def __init__(self):
        raise ValueError("threshold is negative")


def place(injector, name):
    return str(declarations(injector)[name].location)


def test_unknown_attribute():
    class Q(Injector):
        bit_width = 8
        min_bit_width = 2
        max_bit_width = 8
        bit_width_impl = 1
        signed = True

    with pytest.raises(UnknownAttributeError) as caught:
        _ = Q.bit_widht
    error = caught.value
    assert isinstance(error, DependencyError) and isinstance(error, AttributeError)
    assert re.search(r"injector 'Q' \(.*test_errors.py:\d+\), attribute bit_widht", str(error))
    assert str(error).endswith("nearest: 'bit_width', 'min_bit_width', 'max_bit_width'")
    assert (error.injector, error.path) == ("Q", ("bit_widht",))
    assert getattr(Q, "bit_widht", "fallback") == "fallback"


def test_unknown_attribute_names_the_path_to_it():
    class Q(Injector):
        bit_widht = 8
        impl = Needs
        top = value(lambda impl: impl)

    with pytest.raises(UnknownAttributeError) as caught:
        _ = Q.top
    text = str(caught.value)
    assert "attribute top -> impl -> bit_width:" in text
    assert f"'Q' declares no 'bit_width', which 'impl' (Q, {place(Q, 'impl')}) needs; nearest: 'bit_widht'" in text
    assert caught.value.path == ("top", "impl", "bit_width")
    assert not hasattr(Q, "top")


def test_python_adds_no_second_suggestion():
    import traceback

    class Q(Injector):
        bit_width = 8

    with pytest.raises(UnknownAttributeError) as caught:
        _ = Q.bit_widht
    assert "Did you mean" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("attributes", "circle"),
    [
        ({"l1": this.l2, "l2": this.l1}, "l1 -> l2 -> l1"),
        ({"me": this.me}, "me -> me"),
        ({"l1": this.l2.x, "l2": this.l3["k"], "l3": this.l1.y}, "l1 -> l2 -> l3 -> l1"),
        ({"loop": Loop}, "loop -> loop"),
        ({"loop": this.other, "other": Loop}, "loop -> other -> loop"),
        ({"back": this.one, "one": OptionalLoop}, "back -> one -> back"),
        ({"ahead": this.l1, "l1": this.l2, "l2": this.l1}, "l1 -> l2 -> l1"),
    ],
)
def test_circles_that_declarations_show_are_refused_when_the_class_is_made(attributes, circle):
    with pytest.raises(DependencyError) as caught:
        Injector.let(**attributes)
    assert re.search(rf"injector 'Injector' \(.*test_errors.py:\d+\).* {re.escape(circle)} \(", str(caught.value))
    with pytest.raises(DependencyError, match=re.escape(circle)):
        type(Injector)("Q", (Injector,), attributes)


def test_circle_that_only_a_combination_closes():
    class A(Injector):
        l1 = this.l2

    class B(Injector):
        l2 = this.l1

    with pytest.raises(DependencyError, match="l1 -> l2 -> l1"):
        A & B
    with pytest.raises(DependencyError, match="l1 -> l2 -> l1"):

        class C(A, B):
            pass

    assert (A.let(l2=1) & B).l1 == 1


def test_circle_through_a_nested_injector():
    class Sub(Injector):
        up = (this << 1).top
        inner = 1

    with pytest.raises(DependencyError, match=r"top -> sub\.up -> top"):
        Injector.let(sub=Sub, top=this.sub.up)
    assert Injector.let(sub=Sub, top=this.sub.inner, top2=this.sub.up).top2 == 1


def test_a_declared_circle_that_an_override_opens_is_legal():
    """Two aliases that are derived from one another: whichever is declared decides."""

    class Aliases(Injector):
        high = value(lambda low: low)
        low = value(lambda high: high)

    assert Aliases.let(high=3).low == 3
    assert Aliases.let(low=4).high == 4
    with pytest.raises(DependencyError) as caught:
        _ = Aliases.high
    assert "high -> low -> high" in str(caught.value)
    assert place(Aliases, "low") in str(caught.value) and place(Aliases, "high") in str(caught.value)


def test_circle_that_only_a_returned_link_or_class_closes():
    with pytest.raises(DependencyError, match="a -> b -> a"):
        _ = Injector.let(a=value(lambda: this.b), b=this.a).a
    with pytest.raises(DependencyError, match="loop -> loop"):
        _ = Injector.let(loop=value(lambda: Loop)).loop


def test_circle_through_the_injector_class():
    class Q(Injector):
        top = this.a
        a = value(lambda __self__: __self__.b)
        b = value(lambda __self__: __self__.a)

    with pytest.raises(DependencyError, match="circle: b -> a -> b") as caught:
        _ = Q.top
    assert len(caught.value.__notes__) <= 3
    assert not hasattr(Q, "nothing")


def test_reading_the_injector_again_while_building_is_legal():
    class Q(Injector):
        n = 5
        depth = 0

        @value
        def factorial(n, __self__):
            return 1 if n == 0 else n * __self__.let(n=n - 1).factorial

    assert Q.let(n=40).factorial == 815915283247897734345611269596115894272000000000


@pytest.mark.parametrize(
    "attempt",
    [lambda Q: setattr(Q, "bit_width", 4), lambda Q: delattr(Q, "bit_width"), lambda Q: Q(), lambda Q: Q(bit_width=4)],
)
def test_injectors_do_not_change_and_have_no_instances(attempt):
    class Q(Injector):
        bit_width = 8

    with pytest.raises(DependencyError, match=r"cannot .* injector 'Q'.*\(.*test_errors.py:\d+\).*Q\.let\(") as caught:
        attempt(Q)
    assert isinstance(caught.value, FrozenInjectorError) == ("instantiate" not in str(caught.value))
    assert Q.bit_width == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("let", r"attribute 'let' of injector 'Injector' \(.*test_errors.py:\d+\).*Injector\.let\(name=\.\.\.\)"),
        ("mro", "attribute 'mro'.*choose another name"),
        ("__len__", "attribute '__len__'.*without the double underscores"),
        ("__doc__", "'__doc__' on injector 'Injector'.*reserves"),
        ("thing_class", "attribute 'thing_class'.*is 3, which is no class"),
    ],
)
def test_names_that_cannot_be_declared(name, expected):
    with pytest.raises(DependencyError, match=expected):
        Injector.let(**{name: 3})
    if name != "__doc__":
        with pytest.raises(DependencyError, match=expected.replace("'Injector'", "'Q'").replace("Injector\\.", "Q\\.")):
            type(Injector)("Q", (Injector,), {name: 3})


def test_exception_of_a_constructor_or_value_is_chained_with_the_path():
    class Q(Injector):
        impl = Raises
        top = value(lambda impl: impl)
        div = value(lambda: 1 // 0)
        via = this.div

    with pytest.raises(DependencyError) as caught:
        _ = Q.top
    assert isinstance(caught.value.__cause__, ValueError)
    text = str(caught.value)
    assert f"attribute top -> impl: 'impl' (Q, {place(Q, 'impl')}): class Raises raised ValueError: threshold" in text
    with pytest.raises(DependencyError, match=r"attribute via -> div:.*lambda.* raised ZeroDivisionError") as caught:
        _ = Q.via
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_attribute_error_inside_a_constructor_does_not_look_like_a_missing_attribute():
    class Faulty:
        def __init__(self):
            _ = self.nothing

    with pytest.raises(DependencyError) as caught:
        getattr(Injector.let(faulty=Faulty), "faulty", None)
    assert not isinstance(caught.value, AttributeError)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_error_of_the_family_passes_with_its_class_and_a_note():
    class QuantConfigError(DependencyError, ValueError):
        pass

    original = QuantConfigError("bit width 99 is too large")

    class Q(Injector):
        top = this.checked

        @value
        def checked():
            raise original

    with pytest.raises(QuantConfigError) as caught:
        _ = Q.top
    assert caught.value is original
    assert str(original) == "bit width 99 is too large"
    assert (original.injector, original.path) == ("Q", ("top", "checked"))
    assert original.__notes__ == [f"while building Q: top -> checked: 'checked' (Q, {place(Q, 'checked')})"]


@pytest.mark.parametrize(
    ("link", "cause"), [(this.text.missing, AttributeError), (this.text["k"], TypeError), (this.sub["k"], TypeError)]
)
def test_link_that_leads_nowhere(link, cause):
    class Sub(Injector):
        pass

    with pytest.raises(DependencyError, match=re.escape(f"following {link!r} raised {cause.__name__}")) as caught:
        _ = Injector.let(text="x", sub=Sub, a=link).a
    assert isinstance(caught.value.__cause__, cause)


def test_keyboard_interrupt_is_not_an_error_of_the_declaration():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _ = Injector.let(a=value(interrupt)).a


def test_errors_can_be_pickled_and_copied():
    with pytest.raises(UnknownAttributeError) as caught:
        _ = Injector.nothing
    for made in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(made) is UnknownAttributeError
        assert (str(made), made.injector, made.path) == (str(caught.value), "Injector", ("nothing",))


def test_failed_resolution_leaves_the_injector_as_it_was():
    class Q(Injector):
        impl = Needs
        bit_width = value(lambda width: width)

    before = dict(declarations(Q))
    for _ in range(2):
        with pytest.raises(UnknownAttributeError, match="impl -> bit_width -> width"):
            _ = Q.impl
    assert dict(declarations(Q)) == before
    assert isinstance(Q.let(width=1).impl, Needs)


def test_suggestions():
    names = ["bit_width", "signed", "scaling_impl", "scaling_init"]
    assert suggest("SIGNED", names) == ["signed"]
    assert suggest("scaling_inti", names) == ["scaling_init", "scaling_impl"]
    assert suggest("zzzz", names) == []
    assert suggest("a", []) == []


@given(st.lists(st.text(min_size=1, max_size=12), max_size=12), st.text(min_size=1, max_size=12), st.integers(1, 4))
def test_suggestions_come_from_the_candidates(candidates, name, n):
    found = suggest(name, candidates, n)
    assert len(found) == len(set(found)) <= n
    assert set(found) <= set(candidates)
    if name in candidates:
        assert found[0].lower() == name.lower()
