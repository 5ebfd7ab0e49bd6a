"""How a resolution behaves: lazy, from scratch, once each, without a trace on the injector, in any thread."""

import copy
import gc
import inspect
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector import DependencyError, Injector, declarations, register_copy_rule, resolve, this, value


class Counted:
    made = 0

    def __init__(self):
        type(self).made += 1


class Two:
    def __init__(self, left, right):
        self.left, self.right = left, right


class Left:
    def __init__(self, shared):
        self.shared = shared


class Right(Left):
    pass


class Shared(Injector):
    two = Two
    left = Left
    right = Right
    shared = Counted


def snapshot(injector):
    """All that a class can show of its state, down to the identity of each declaration."""
    info = injector.__dict__["__injector__"]
    return (
        {name: id(obj) for name, obj in injector.__dict__.items()},
        {name: id(each) for name, each in info.table.items()},
        {name: id(each) for name, each in info.own.items()},
        injector.__bases__,
        len(injector.__subclasses__()),
    )


def test_consumers_in_one_resolution_share_what_they_need():
    two = Shared.two
    assert two.left.shared is two.right.shared


def test_each_access_builds_anew():
    assert Shared.two is not Shared.two
    assert Shared.two.left.shared is not Shared.two.left.shared


def test_link_and_target_are_one_object():
    made = Shared.let(alias=this.shared, left=this.alias, right=this.shared)
    two = made.two
    assert two.left is two.right


def test_nested_injector_is_resolved_once():
    class Q(Injector):
        two = Two
        left = this.sub.part
        right = this.sub.part

        class sub(Injector):
            part = Counted

    two = Q.two
    assert two.left is two.right


def test_only_what_is_needed_is_built():
    calls = []

    def note(name):
        calls.append(name)
        return name

    class Q(Injector):
        a = value(lambda b: note("a") + b)
        b = value(lambda: note("b"))
        c = value(lambda: note("c"))
        dangling = value(lambda nowhere: note("dangling"))

    assert Q.a == "ab"
    assert calls == ["b", "a"]


def test_every_attribute_is_called_once_and_signatures_are_read_once(monkeypatch):
    """The work of a resolution is one call for each attribute; no source, no signature and no class is looked at."""
    calls = []
    names = [f"n{i}" for i in range(25)]
    functions = {}
    for name, following in zip(names, [*names[1:], "end"], strict=True):
        namespace = {"calls": calls}
        exec(f"def {name}({following}, shared): calls.append('{name}'); return {following} + shared", namespace)
        functions[name] = value(namespace[name])
    Q = Injector.let(end=1, shared=2, **functions)
    for forbidden in ("signature", "getsource", "getsourcelines", "stack", "getmro"):
        monkeypatch.setattr(inspect, forbidden, lambda *args, **kwargs: pytest.fail("read again"))
    assert Q.n0 == 1 + 2 * 25
    assert sorted(calls) == sorted(names)
    assert resolve(Q, "n0").value == 51
    assert len(calls) == 2 * len(names)


def test_python_calls_per_name_do_not_grow_with_the_table():
    """A bound on the frames entered a name, which is what the time of a resolution is made of."""

    def frames(extra):
        made = Injector.let(a=value(lambda b, c: b), b=value(lambda c: c), c=1, **{f"x{i}": i for i in range(extra)})
        assert made.a == 1
        count = 0

        def profile(frame, event, argument):
            nonlocal count
            count += event == "call"

        gc.collect()
        gc.disable()  # what collects garbage calls functions of others
        sys.setprofile(profile)
        try:
            _ = made.a
        finally:
            sys.setprofile(None)
            gc.enable()
        return count

    few = frames(0)
    assert few == frames(300)
    assert few <= 3 * 12


def test_resolution_changes_nothing():
    class Q(Shared):
        @value
        def chosen(two):
            return Left

        linked = value(lambda: this.two)

        class sub(Injector):
            up = (this << 1).two

    before = [snapshot(each) for each in (Q, Shared, Injector)]
    for name in ("two", "chosen", "linked"):
        getattr(Q, name)
        resolve(Q, name).records  # noqa: B018
    with pytest.raises(DependencyError):
        _ = Q.nothing
    assert [snapshot(each) for each in (Q, Shared, Injector)] == before


def test_nested_access_leaves_no_classes_behind():
    class Q(Injector):
        width = 8

        class sub(Injector):
            up = (this << 1).width

    before = snapshot(Q)
    for _ in range(3):
        assert Q.sub.up == 8
    gc.collect()
    assert snapshot(Q) == before
    assert declarations(Q)["sub"].obj.__subclasses__() == []


def test_classes_and_functions_are_not_kept_alive():
    class Local:
        pass

    def function(a):
        return type(a)

    made = Injector.let(a=Local, b=value(function))
    assert isinstance(made.b, Local)
    references = [weakref.ref(each) for each in (made, Local, function)]
    del made, Local, function
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_threads_resolve_one_injector_at_the_same_time():
    barrier = threading.Barrier(4)

    class Q(Shared):
        shared = value(lambda: [])

        @value
        def slow(two, __self__):
            barrier.wait(timeout=20)  # all threads are inside the resolution at once
            assert two.left.shared is two.right.shared
            return two

    class Sub(Injector):
        part = (this << 1).slow

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: Q.let(sub=Sub, result=this.sub.part).result, range(40)))
    assert len({id(each) for each in results}) == 40
    assert len({id(each.left.shared) for each in results}) == 40


def test_first_use_in_many_threads_reads_signatures_consistently():
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            namespace = {}
            exec("class Fresh:\n    def __init__(self, n, m=2): self.sum = n + m", namespace)
            Q = Injector.let(n=1, fresh=value(lambda namespace=namespace: namespace["Fresh"]))
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda _: Q.fresh.sum, range(16))) == [3] * 16
    finally:
        sys.setswitchinterval(old)


def test_resolution_inside_a_constructor():
    class Outer:
        def __init__(self, __self__, n):
            self.inner = __self__.let(n=n - 1).outer if n else None

    made = Injector.let(outer=Outer, n=3)
    depth, node = 0, made.outer
    while node.inner is not None:
        depth, node = depth + 1, node.inner
    assert depth == 3


@pytest.fixture
def rule():
    """Lists are copied, except under the name 'kept'."""
    remove = register_copy_rule(lambda obj: isinstance(obj, list), copy.deepcopy, except_names=["kept"])
    yield remove
    remove()


def test_objects_that_own_state_are_copied_once_a_resolution(rule):
    original = [[1]]

    class Q(Injector):
        two = Two
        left = this.state
        right = this.state
        state = original
        kept = original
        by_value = value(lambda: original)

    two = Q.two
    assert two.left == original
    assert two.left is not original and two.left[0] is not original[0]
    assert two.left is two.right
    assert Q.state is not Q.state
    assert Q.kept is original
    assert Q.by_value is original
    rule()
    assert Q.state is original


def test_copy_that_fails_names_the_attribute(rule):
    with pytest.raises(DependencyError, match="attribute alias -> state: .* copying it raised TypeError") as caught:
        _ = Injector.let(alias=this.state, state=[threading.Lock()]).alias
    assert isinstance(caught.value.__cause__, TypeError)


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, 11)), min_size=n, max_size=n)))
def test_any_acyclic_wiring_resolves_to_what_plain_calls_give(needs):
    """Attribute i needs some of the attributes before it; its value is 1 + the sum of theirs."""
    parents = [sorted(each for each in wanted if each < index) for index, wanted in enumerate(needs)]
    expected, reached = [], []
    for index, wanted in enumerate(parents):
        expected.append(1 + sum(expected[each] for each in wanted))
        reached.append({index}.union(*(reached[each] for each in wanted)))
    wired = {}
    for index, wanted in enumerate(parents):
        arguments = ", ".join(f"n{each}" for each in wanted)
        wired[f"n{index}"] = value(eval(f"lambda {arguments}: 1 + sum([{arguments}])"))
    Q = Injector.let(**wired)
    for index in range(len(parents)):
        resolution = resolve(Q, f"n{index}")
        assert resolution.value == expected[index]
        assert set(resolution.records) == {f"n{each}" for each in reached[index]}
        for name, record in resolution.records.items():
            askers = {f"n{each}" for each in reached[index] if int(name[1:]) in parents[each]}
            assert set(record.asked_by) == askers
