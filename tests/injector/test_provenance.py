"""Where each name was declared, what it overrode, who asked for it, and the texts made from that."""

import enum
import inspect
import sys
import types

import pytest

from injector import (
    DependencyError,
    Injector,
    SourceLocation,
    caller_location,
    declarations,
    explain,
    override,
    readable_names,
    resolve,
    resolve_many,
    this,
    value,
)


class Color(enum.StrEnum):
    RED = "red"


class Part:
    def __init__(self, width, sign=True):
        self.width = width


def line() -> int:
    return sys._getframe(1).f_lineno


def lines(injector):
    return {name: each.location.line for name, each in declarations(injector).items()}


def test_lines_of_a_class_body():
    start = line()

    class Q(Injector):
        first = 1
        second: int = 2
        third = (
            3,
            4,
        )

        @value
        def fourth(
            first,
        ):
            return first

        fifth = value(lambda first: first)
        first_again, sixth = 1, 2

        class seventh(Injector):
            inner = 1

        first = 5  # the last assignment counts

    offsets = {name: at - start for name, at in lines(Q).items()}
    assert offsets == {
        "first": 22,
        "second": 4,
        "third": 5,
        "fourth": 11,
        "fifth": 16,
        "first_again": 17,
        "sixth": 17,
        "seventh": 19,
    }
    assert lines(Q.seventh)["inner"] - start == 20
    assert {each.location.file for each in declarations(Q).values()} == {__file__}


def test_lines_are_those_of_the_source():
    source, first = inspect.getsourcelines(test_lines_of_a_class_body)
    assert source[[text.strip() for text in source].index("second: int = 2")]

    class Q(Injector):
        marked = "this very line"

    at = declarations(Q)["marked"].location
    with open(at.file) as file:
        assert file.read().splitlines()[at.line - 1].strip() == 'marked = "this very line"'


def test_let_belongs_to_the_line_of_the_caller():
    made = Injector.let(a=1)
    here = line() - 1
    declared = declarations(made)["a"]
    assert (declared.location, declared.origin, declared.owner) == (SourceLocation(__file__, here), "let", made)
    assert declared.owner_name == "Injector"


def test_library_frames_are_skipped():
    """A module of the package brevitas that calls `let` for its caller, as a layer does for its keywords."""
    library = types.ModuleType("brevitas.nn.layer")
    exec("def layer(q, **kw): return inner(q, kw)\ndef inner(q, kw): return q.let(**kw)", library.__dict__)
    made = library.layer(Injector, a=1)
    assert declarations(made)["a"].location == SourceLocation(__file__, line() - 1)
    exec("def where(): return location()", library.__dict__)
    library.location = caller_location
    assert library.where() == SourceLocation(__file__, line())


def test_package_whose_name_only_starts_alike_is_not_skipped():
    library = types.ModuleType("brevitas_examples.layer")
    exec(compile("def layer(q): return q.let(a=1)", "layer.py", "exec"), library.__dict__)
    assert declarations(library.layer(Injector))["a"].location == SourceLocation("layer.py", 1)


def test_let_at_import_of_a_library_module_belongs_to_that_module(tmp_path, monkeypatch):
    package = tmp_path / "brevitas_lines_probe"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "presets.py").write_text("from injector import Injector\n\nQ = Injector.let(a=1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(caller_location, "__defaults__", (("injector", "brevitas_lines_probe"),))
    from brevitas_lines_probe import presets  # type: ignore[import-not-found]

    assert declarations(presets.Q)["a"].location == SourceLocation(str(package / "presets.py"), 3)


def test_override_takes_one_location_or_one_a_name():
    rule = SourceLocation("recipe.yaml", 7)
    made = override(Injector, {"a": 1}, rule)
    assert (declarations(made)["a"].location, declarations(made)["a"].origin) == (rule, "let")
    made = override(Injector, {"a": 1, "b": 2}, {"a": rule})
    assert declarations(made)["a"].location == rule
    assert declarations(made)["b"].location == SourceLocation(__file__, line() - 2)
    assert declarations(override(Injector, {"c": 1}))["c"].location == SourceLocation(__file__, line())
    with pytest.raises(DependencyError, match="int"):
        override(int, {"a": 1})


def test_classes_made_by_type_or_new_class_have_lines():
    made = type(Injector)("Made", (Injector,), {"a": 1})
    assert declarations(made)["a"].location == SourceLocation(__file__, line() - 1)

    def body(namespace):
        namespace["b"] = 2

    made = types.new_class("Made", (Injector,), exec_body=body)
    assert declarations(made)["b"].location == SourceLocation(__file__, line() - 3)


def test_kinds_and_objects_of_declarations():
    class Q(Injector):
        built = Part
        kept_class = Part
        width = 3
        linked = this.width
        nested = Injector
        computed = value(lambda width: width)

    found = declarations(Q)
    assert {name: each.kind for name, each in found.items()} == {
        "built": "class",
        "kept_class": "class_object",
        "width": "object",
        "linked": "link",
        "nested": "injector",
        "computed": "value",
    }
    assert found["built"].obj is Part
    assert found["built"].owner is Q
    with pytest.raises(TypeError):
        found["new"] = found["built"]


class Quantizer(Injector):
    part = Part
    unread = "never"
    alias = this.width

    @value
    def width(kind):
        return 8 if kind == "wide" else this.narrow

    kind = "wide"
    narrow = 4

    @value
    def whole(part, width):
        return (part, width)


def test_records_tell_value_declaration_and_who_asked():
    made = Quantizer.let(kind="slim")
    resolution = resolve(made, "whole")
    records = resolution.records
    assert list(records) == ["kind", "narrow", "width", "part", "whole"]
    assert {name: each.asked_by for name, each in records.items()} == {
        "kind": ("width",),
        "narrow": ("width",),
        "width": ("part", "whole"),
        "part": ("whole",),
        "whole": (),
    }
    assert records["width"].value == 4
    assert records["whole"].value is resolution.value
    assert records["part"].value is resolution.value[0]
    assert records["kind"].declaration is declarations(made)["kind"]
    assert [each.owner for each in records["kind"].declaration.overrode] == [Quantizer]
    with pytest.raises(TypeError):
        records["kind"] = None


def test_resolution_equals_attribute_access():
    assert resolve(Quantizer, "width").value == Quantizer.width == 8


def test_many_roots_share_one_resolution():
    resolution = resolve_many(Quantizer, ["part", "whole", "alias"])
    assert resolution.values["whole"][0] is resolution.values["part"]
    assert list(resolution.values) == ["part", "whole", "alias"]
    assert resolution.records["width"].asked_by == ("part", "whole", "alias")
    with pytest.raises(DependencyError, match="3 names"):
        _ = resolution.value


def test_records_of_nested_injectors_and_their_parents():
    class Q(Injector):
        width = 8
        result = this.sub.double

        class sub(Injector):
            near = (this << 1).width
            double = value(lambda near: 2 * near)

    records = resolve(Q, "result").records
    assert {name: each.asked_by for name, each in records.items()} == {
        "sub": ("result",),
        "width": ("sub.near",),
        "sub.near": ("sub.double",),
        "sub.double": ("result",),
        "result": (),
    }
    assert records["sub"].value.double == 16
    assert list(resolve(Q.sub, "double").records) == ["(this << 1).width", "near", "double"]


def test_readable_names():
    class Q(Injector):
        part = Part
        kept_class = value
        linked = this.deep.er["x"]
        outer = (this << 1).above
        computed = value(lambda alpha, beta=1, *, gamma, __self__: 0)

        class sub(Injector):
            up = (this << 1).reached
            higher = (this << 2).beyond
            down = this.inside

            class lower(Injector):
                far = (this << 2).far_reached

    assert readable_names(Q) == {"width", "sign", "deep", "alpha", "beta", "gamma", "reached", "far_reached"}
    assert readable_names(Injector) == frozenset()


def test_explain_a_resolution():
    made = override(Quantizer, {"kind": "slim"}, SourceLocation("recipe.yaml", 5))
    at = lines(Quantizer)
    text = explain(resolve(made, "width"))
    assert text.splitlines() == [
        f"kind = 'slim'  [set by let on Quantizer, recipe.yaml:5; "
        f"overrides 'wide' of Quantizer, {__file__}:{at['kind']}; read by width]",
        f"narrow = 4  [set in Quantizer, {__file__}:{at['narrow']}; read by width]",
        f"width = 4  [set in Quantizer, {__file__}:{at['width']}]",
    ]
    assert explain(resolve(made, "width"), "narrow") == text.splitlines()[1]
    assert explain(made, "width") == text
    assert explain(resolve(made, "width"), "unread") == "unread was not read by Quantizer.width"


def test_defaults_of_a_constructor_that_no_attribute_gave():
    class Scaling:
        def __init__(self, shape, init=1.0, step=None, __self__=None): ...

    class Q(Injector):
        shape = (2,)
        step = 3
        direct = Scaling

        @value
        def chosen(shape, other=5):
            return Scaling

        @value
        def made(shape):
            return Scaling(shape, init=7.0)

    records = resolve(Q, "direct").records
    assert records["direct"].defaults == {"init": 1.0}
    assert records["shape"].defaults == {}
    assert resolve(Q, "chosen").records["chosen"].defaults == {"init": 1.0}
    assert resolve(Q, "made").records["made"].defaults == {}
    assert explain(Q, "direct").splitlines()[-1].endswith("; by default init = 1.0]")


def test_explain_an_injector_lists_declarations_and_builds_nothing():
    class Q(Injector):
        @value
        def fails():
            raise AssertionError("was resolved")

        text = "x" * 200
        member = Color.RED
        kept_class = Part
        several_lines = type("Odd", (), {"__repr__": lambda self: "Odd(\n  1,\n  2)"})()

    shown = explain(Q).splitlines()
    assert [each.split(" = ")[0] for each in shown] == ["fails", "text", "member", "kept_class", "several_lines"]
    assert shown[2].startswith("member = Color.RED  [set in Q, ")
    assert shown[3].startswith("kept_class = Part  [set in Q, ")
    assert "Odd( 1, 2)" in shown[4]
    assert all(len(each) < 200 + len(__file__) for each in shown)


@pytest.mark.parametrize("function", [declarations, readable_names, explain, lambda x: resolve(x, "a")])
def test_what_is_no_injector_is_refused(function):
    with pytest.raises(DependencyError, match="int"):
        function(int)
