"""What hosts on torch share: stacks told by class, names of streams, presets of known models, values for each context."""

import contextvars
import gc
import threading
import weakref

import pytest

from magpolicy import AdapterError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch.adapter import (  # noqa: E402
    KnownModel,
    Layout,
    Scoped,
    StackSpec,
    StackTable,
    StreamNamer,
    near_misses,
    rows_of,
)

# Stacks told by class ---------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def forward(self, x, other=None):
        return x


class Odd(torch.nn.Module):
    """A host's model: nothing says how its lists follow one another."""

    __module__ = "host.models.odd"

    def __init__(self):
        super().__init__()
        self.first = torch.nn.ModuleList(Block() for _ in range(2))
        self.second = torch.nn.ModuleDict({str(i): Block() for i in range(2)})
        self.third = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        return x


class Younger(Odd):
    pass


def table(package="host", **specs):
    return StackTable(specs, package=package)


def blocks_of(module, spec):
    return [next(n for n, m in module.named_modules() if m is block) for block in spec.stack(module).blocks]


def test_a_spec_names_the_lists_in_order_or_by_turns():
    order = [f"{name}.{i}" for name in ("third", "second") for i in range(2)]
    assert blocks_of(Odd(), StackSpec("third,second")) == order
    assert blocks_of(Odd(), StackSpec("third,second", interleaved=True)) == [order[i] for i in (0, 2, 1, 3)]


def test_each_list_may_have_a_layout_of_its_own():
    one, other = Layout("x"), Layout("x", batch=1)
    assert StackSpec("first,third", (one, other)).stack(Odd()).layouts == (one, one, other, other)
    assert StackSpec("first,third", (one, other), interleaved=True).stack(Odd()).layouts == (one, other, one, other)


def test_the_nearest_class_that_is_told_counts_by_name_or_by_module_and_name():
    spec = StackSpec("first")
    assert table(Odd=spec).spec(Younger()) is spec
    assert table(Odd=StackSpec("third"), Younger=spec).spec(Younger()) is spec
    assert StackTable({"models.odd.Odd": spec}, package="host").spec(Younger()) is spec
    assert StackTable({"odd.Odd": spec}, package="host", below="host.models").spec(Younger()) is spec
    assert StackTable({"other.Odd": spec}, package="host").spec(Younger()) is None
    assert table().spec(Odd()) is None


def test_what_has_no_stack_is_taken_whole_if_it_is_the_hosts_and_refused_if_not():
    assert table(Odd=StackSpec(whole=True)).find(Odd()) is None
    assert table().find(Odd()) is None
    with pytest.raises(AdapterError, match="several ModuleLists"):
        table("elsewhere").find(Odd())


def test_compiled_blocks_are_read_as_the_blocks_they_were():
    net = Odd()
    net.first[1] = torch.compile(net.first[1], backend="eager")
    stack = StackSpec("first").stack(net)
    assert stack.kinds == (Block, Block)
    assert stack.blocks[1] is net.first[1]


# Names of streams -------------------------------------------------------------------------------------------------------------


def test_a_second_condition_of_a_role_is_numbered_and_keeps_its_name():
    names = StreamNamer()
    assert [names.condition(key, "cond") for key in ("a", "b", "a", "c")] == ["cond", "cond 2", "cond", "cond 3"]
    assert names.condition("a", "uncond") == "uncond"
    assert (names.known("b"), names.known("a"), names.known("z")) == ("cond 2", None, None)
    assert {names.bases[name] for name in ("cond", "cond 2", "cond 3")} == {"cond"}


def test_a_repeat_within_a_step_is_a_stream_of_its_own():
    names = StreamNamer()
    for step in range(2):
        found = [names.evaluated(called, step=step) for called in (("cond", "uncond"), ("cond",), ("cond",), ("uncond",))]
        assert found == [("cond", "uncond"), ("cond, again",), ("cond, again 2",), ("uncond, again",)]
        assert names.repeats == ["cond", "uncond", "cond, again", "cond, again 2", "uncond, again"]
        assert names.complete == bool(step)
    assert names.bases["uncond, again"] == "uncond"


def test_context_windows_are_streams_of_their_own():
    names = StreamNamer()
    assert names.evaluated(["cond"], range(16)) == ("cond [0:16]",)
    assert names.evaluated(["cond"], [12, 13, 14, 15, 0, 1]) == ("cond [12,13,14,15,0,1]",)
    assert names.evaluated(["cond"], range(16)) == ("cond [0:16], again",)
    assert names.bases["cond [0:16], again"] == "cond"


def test_more_than_guidance_can_have_is_said():
    names = StreamNamer()
    for key in range(13):
        assert not names.too_many
        names.evaluated([names.condition(key, "cond")], step=key)
    assert names.too_many


# Presets of known models ------------------------------------------------------------------------------------------------------

KNOWN = (
    KnownModel("A", ("small",), {"layers": 2}),
    KnownModel("A", ("large", "larger"), {"layers": 4}),
    KnownModel("B", ("b",)),
)


def test_a_model_is_known_by_its_class_and_the_figures_of_its_config():
    assert rows_of(KNOWN, "A", {"layers": 4, "heads": 3}) == [KNOWN[1]]
    assert rows_of(KNOWN, "A", {}) == []
    assert near_misses(KNOWN, "A", ["more", "small"]) == "close, of the same class: small, large, larger, more; "
    assert near_misses(KNOWN, "C") == ""


# Values for each context ------------------------------------------------------------------------------------------------------


class Value:
    pass


def test_a_value_is_that_of_the_innermost_block_in_this_context():
    scoped, seen = Scoped("test"), []
    with scoped.set("outer"):
        with scoped.set("inner"):
            assert scoped.get() == "inner"
        thread = threading.Thread(target=lambda: seen.append(scoped.get()))
        thread.start()
        thread.join()
        assert (scoped.get(), seen) == ("outer", [None])
    assert scoped.get() is None


def test_a_block_that_is_left_in_another_context_is_over_everywhere():
    scoped, block = Scoped("test"), None
    with scoped.set("outer"):
        block = scoped.set("inner")
        block.__enter__()
        assert scoped.get() == "inner"
        contextvars.copy_context().run(block.__exit__, None, None, None)
        assert scoped.get() == "outer"


def test_what_is_kept_goes_with_the_owner_and_not_with_the_context():
    scoped, value = Scoped("test"), Value()
    scoped.keep(value)
    assert scoped.get() is value
    assert scoped.everywhere() == [value]
    gone = weakref.ref(value)
    del scoped, value
    gc.collect()
    assert gone() is None
