"""What each form of a class attribute resolves to, and how constructors are wired."""

import functools

import dependencies
import pytest

from injector import BaseInjector, DependencyError, ExtendedInjector, Injector, this, value


class Leaf:
    pass


class Pair:
    def __init__(self, first, second="default"):
        self.first, self.second = first, second


class Module:
    """Stands for a framework's module: its constructor takes anything and is meant to be inherited."""

    def __init__(self, *args, **kwargs):
        self.arguments = (args, kwargs)


class Child(Module):
    pass


def test_the_three_names_are_one_object():
    assert BaseInjector is Injector is ExtendedInjector


def test_class_is_built_with_attributes_found_by_name():
    class Q(Injector):
        pair = Pair
        first = Leaf
        second = 2

    assert isinstance(Q.pair, Pair)
    assert isinstance(Q.pair.first, Leaf)
    assert Q.pair.second == 2


def test_class_under_a_class_name_is_the_class_itself():
    class Q(Injector):
        leaf_class = Leaf
        sub_class = Injector

    assert Q.leaf_class is Leaf
    assert Q.sub_class is Injector


@pytest.mark.parametrize("obj", [0, 1.5, "text", None, (1, 2), object(), [1], test_the_three_names_are_one_object])
def test_any_other_object_is_passed_as_it_is(obj):
    assert Injector.let(x=obj).x is obj


def test_none_is_a_value_not_an_absence():
    class Q(Injector):
        second = None
        first = None
        pair = Pair

    assert Q.second is None
    assert Q.pair.second is None
    assert hasattr(Q, "second")


def test_optional_parameter_uses_its_default_only_where_nothing_is_declared():
    assert Injector.let(pair=Pair, first=1).pair.second == "default"
    assert Injector.let(pair=Pair, first=1, second=None).pair.second is None


def test_optional_parameter_that_is_declared_but_cannot_be_built_is_an_error():
    with pytest.raises(DependencyError, match="missing"):
        _ = Injector.let(pair=Pair, first=1, second=this.missing).pair


def test_keyword_only_and_positional_only_parameters():
    class Mixed:
        def __init__(self, a, b=2, /, c=3, *, d, e=5):
            self.got = (a, b, c, d, e)

    assert Injector.let(mixed=Mixed, a=1, d=4).mixed.got == (1, 2, 3, 4, 5)
    assert Injector.let(mixed=Mixed, a=1, b=20, d=4, e=50).mixed.got == (1, 20, 3, 4, 50)


def test_self_parameter_receives_the_injector_class():
    class Holder:
        def __init__(self, __self__):
            self.injector = __self__

    class Q(Injector):
        holder = Holder
        same = value(lambda __self__: __self__)
        bit_width = 8

    made = Q.let(bit_width=4)
    assert Q.holder.injector is Q
    assert made.holder.injector is made
    # A class that a @value returns is built or nested, so the injector itself arrives as a nested one.
    assert issubclass(made.same, made)


def test_inherited_constructor_with_only_variable_arguments_is_called_without_arguments():
    class Q(Injector):
        args = 1
        kwargs = 2
        child = Child

    assert Q.child.arguments == ((), {})


def test_inherited_constructor_with_parameters_is_wired():
    class Narrow(Pair):
        pass

    assert Injector.let(narrow=Narrow, first=7).narrow.first == 7


def test_constructor_wrapped_by_a_decorator_is_read_through_the_wrapper():
    class Wrapped:
        def __init__(self, first):
            self.first = first

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    Wrapped.__init__ = logged(Wrapped.__init__)

    class Inheriting(Module):
        pass

    Inheriting.__init__ = logged(Module.__init__)  # what TorchScript's metaclass does to an inherited constructor
    assert Injector.let(wrapped=Wrapped, first=3).wrapped.first == 3
    assert Injector.let(inheriting=Inheriting).inheriting.arguments == ((), {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [("*args", r"\*args"), ("**kwargs", r"\*\*kwargs"), ("a, *args", r"\*args"), ("*args, **kwargs", r"\*args")],
)
def test_own_constructor_with_variable_arguments_is_refused(source, expected):
    namespace = {}
    exec(f"class Greedy:\n    def __init__(self, {source}): pass", namespace)
    with pytest.raises(DependencyError, match=rf"attribute 'greedy' of injector 'Injector' .*'Greedy'.*'{expected}'"):
        Injector.let(greedy=namespace["Greedy"])
    with pytest.raises(DependencyError, match=rf"greedy.*'Greedy'.*'{expected}'"):
        _ = Injector.let(greedy=value(lambda: namespace["Greedy"])).greedy


def test_inherited_constructor_with_a_parameter_and_variable_arguments_is_refused():
    class Base:
        def __init__(self, first, *rest):
            pass

    class Derived(Base):
        pass

    with pytest.raises(DependencyError, match=r"Derived.*'\*rest'"):
        Injector.let(derived=Derived)


def test_default_that_is_a_class_and_its_name_must_agree():
    class ClassDefault:
        def __init__(self, part=Leaf):
            pass

    class ObjectDefault:
        def __init__(self, part_class=3):
            pass

    class Good:
        def __init__(self, part_class=Leaf):
            self.part_class = part_class

    with pytest.raises(DependencyError, match=r"ClassDefault.*parameter 'part'.*part_class"):
        Injector.let(a=ClassDefault)
    with pytest.raises(DependencyError, match=r"ObjectDefault.*parameter 'part_class'.*needs a class"):
        Injector.let(a=ObjectDefault)
    assert Injector.let(a=Good).a.part_class is Leaf
    with pytest.raises(DependencyError, match=r"lambda.*parameter 'part'"):
        Injector.let(a=value(lambda part=Leaf: part))


def test_value_is_called_with_attributes():
    class Q(Injector):
        channels = 3

        @value
        def bit_width(channels, extra=1):
            return (8 if channels == 3 else 4) + extra

    assert Q.bit_width == 9
    assert Q.let(channels=1).bit_width == 5
    assert Q.let(extra=0).bit_width == 8


def test_value_that_returns_a_class_builds_it():
    class Q(Injector):
        wide = True
        first = 1

        @value
        def part(wide):
            return Pair if wide else Leaf

        @value
        def part_class(wide):
            return Pair if wide else Leaf

    assert Q.part.first == 1
    assert isinstance(Q.let(wide=False).part, Leaf)
    assert Q.part_class is Pair


def test_value_that_returns_a_link_does_not_touch_the_other_branch():
    class Q(Injector):
        choose = "left"
        left = 1
        right = this.missing

        @value
        def chosen(choose):
            return this.left if choose == "left" else this.right

    assert Q.chosen == 1
    with pytest.raises(DependencyError, match="chosen -> right -> missing"):
        _ = Q.let(choose="right").chosen


def test_value_that_returns_an_injector_is_nested():
    class Inner(Injector):
        doubled = value(lambda n: 2 * n)
        n = (this << 1).n

    class Q(Injector):
        n = 4
        inner = value(lambda: Inner)
        result = this.inner.doubled

    assert Q.result == 8
    assert Q.inner.doubled == 8


def test_value_under_a_class_name_must_give_a_class():
    with pytest.raises(DependencyError, match="x_class.*gave 3"):
        _ = Injector.let(x_class=value(lambda: 3)).x_class
    with pytest.raises(DependencyError, match="x_class.*gave 3"):
        _ = Injector.let(x_class=this.y, y=3).x_class
    assert Injector.let(x_class=this.y_class, y_class=Leaf).x_class is Leaf


def test_value_takes_any_callable():
    assert Injector.let(n=value(functools.partial(pow, 2, exp=5))).n == 32
    assert Injector.let(n=value(len), obj="four").n == 4


def test_value_refuses_what_is_no_function():
    with pytest.raises(DependencyError, match="Leaf"):
        value(Leaf)
    with pytest.raises(DependencyError, match="3"):
        value(3)
    with pytest.raises(DependencyError, match="attribute 'a'.*'self'"):
        Injector.let(a=value(lambda self: 1))
    with pytest.raises(DependencyError, match=r"attribute 'a'.*\*names"):
        Injector.let(a=value(lambda *names: 1))


def test_links_follow_attributes_and_items():
    class Q(Injector):
        pair = Pair
        first = {"k": [10, 20]}
        a = this.first
        b = this.pair.first
        c = this.first["k"]
        d = this.pair.first["k"][1]

    assert (Q.a, Q.b, Q.c, Q.d) == ({"k": [10, 20]}, {"k": [10, 20]}, [10, 20], 20)


def test_nested_injector_and_its_parents():
    class Q(Injector):
        bit_width = 8
        first = this.middle.inner.double

        class middle(Injector):
            own = 1

            class inner(Injector):
                width = (this << 2).bit_width
                near = (this << 1).own
                double = value(lambda width, near: 2 * width + near)

    assert Q.first == 17
    assert Q.let(bit_width=4).first == 9
    assert Q.middle.inner.double == 17
    assert issubclass(Q.middle, Injector)
    assert Q.middle.let(own=5).inner.double == 21


def test_parameter_that_names_a_nested_injector_receives_it_bound_to_its_parent():
    class Q(Injector):
        bit_width = 8
        first = this.sub
        pair = Pair

        class sub(Injector):
            width = (this << 1).bit_width

    assert Q.pair.first.width == 8
    assert Q.let(bit_width=2).pair.first.width == 2


def test_link_above_the_outermost_injector():
    class Q(Injector):
        class sub(Injector):
            width = (this << 2).bit_width

    with pytest.raises(DependencyError, match=r"attribute width:.*\(this << 2\)\.bit_width.*'Q' is not inside"):
        _ = Q.sub.let().width
    with pytest.raises(DependencyError, match=r"attribute up -> sub\.width:.*'Q' is not inside"):
        _ = Q.let(up=this.sub.width).up
    with pytest.raises(ValueError, match="Positive integer"):
        _ = this << 0


@pytest.mark.parametrize("link", [this, this << 1, this["k"], (this << 1)[0].x, dependencies.this.x << 1])
def test_link_must_name_an_attribute(link):
    with pytest.raises(DependencyError, match="attribute 'a'.*names no attribute"):
        Injector.let(a=link)
    with pytest.raises(DependencyError, match="'a' .*names no attribute"):
        _ = Injector.let(a=value(lambda: link)).a


def test_forms_imported_from_dependencies_itself_mean_the_same():
    class Q(Injector):
        n = 2
        m = dependencies.this.n

        @dependencies.value
        def square(n):
            return n * n

    assert (Q.m, Q.square) == (2, 4)


def test_other_forms_of_dependencies_are_refused_by_name():
    class Foreign(dependencies.Injector):
        x = 1

    with pytest.raises(DependencyError, match="attribute 'sub'.*dependencies.Injector"):
        Injector.let(sub=Foreign)
    with pytest.raises(DependencyError, match="attribute 'op'.*operation"):
        Injector.let(op=dependencies.operation(lambda: 1))
    with pytest.raises(DependencyError, match="attribute 'pack'.*Package"):
        Injector.let(pack=dependencies.Package("os"))


def test_annotations_and_docstrings_declare_nothing():
    class Q(Injector):
        """Text."""

        bit_width: int = 8
        signed: bool

        def helper(self):
            return super()

    assert dir(Q) == ["bit_width", "helper"]
    assert Q.__doc__ == "Text."
    assert Q.__annotations__ == {"bit_width": int, "signed": bool}


def test_private_names_are_declarations_like_others():
    class Q(Injector):
        _note = "kept"

    assert Q._note == "kept"
    assert "_note" in Q
