"""Hooks of diffusers on the first block that take a part of what the model passes: skips go by what enters the stack.

One process: half of the tokens stand for the share of one. Two processes are in ``tests/distributed``.
"""

import pytest

import magpolicy
from magpolicy import Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from diffusers.hooks import HookRegistry, ModelHook  # noqa: E402

from magpolicy_torch.blocks._entry import entry_of  # noqa: E402
from torch import nn  # noqa: E402


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states, temb):
        return hidden_states + self.linear(hidden_states) + temb


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(4, 4)

    def forward(self, x, temb):
        for block in self.blocks:
            x = block(x, temb)
        return self.out(x)


class Half(ModelHook):
    """The first half of the tokens, as the plans of context parallelism name what they split."""

    def __init__(self):
        super().__init__()
        self.metadata = {"hidden_states": "half"}

    def pre_forward(self, module, *args, **kwargs):
        hidden, *rest = args
        return (hidden[:, : hidden.shape[1] // 2], *rest), kwargs


class Fetch(ModelHook):
    """What a block that runs needs, and one that does not run must not do."""

    count = 0

    def pre_forward(self, module, *args, **kwargs):
        self.count += 1
        return args, kwargs


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def hooked(net, hook, name="half"):
    HookRegistry.check_if_exists_or_initialize(net.blocks[0]).register_hook(hook, name)


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 6, 4, generator=generator), torch.randn(1, 1, 4, generator=generator)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["shadow", "patches"])
def test_a_skip_adds_the_residual_to_what_enters_the_stack(net, first, wrapped):
    if wrapped:
        own = net.forward
        net.forward = lambda *args: own(*args)
    if first:
        hooked(net, Half())
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle:
        if not first:
            hooked(net, Half())
        with handle.run():
            (x, temb), (y, _) = inputs(0), inputs(1)
            computed = net(x, temb)
            entered = x[:, :3]
            left = entered
            for block in net.blocks:
                left = left + block.linear(left) + temb
            assert torch.equal(computed, net.out(left))
            for _ in range(2):
                assert torch.equal(net(y, temb), net.out(y[:, :3] + (left - entered)))
        assert [e.decision for e in handle.report.trace] == [Decision.SCHEDULED, Decision.REUSED, Decision.REUSED]


def test_hooks_that_come_and_go_between_runs_are_another_kind_of_call(net):
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle:
        for on in (False, True, False):
            if on:
                hooked(net, Half())
            elif entry_of(net.blocks[0]) is not None:
                net.blocks[0]._diffusers_hook.remove_hook("half")
            with handle.run():
                tokens = [net(*inputs(step)).shape[1] for step in range(2)]
            assert tokens == [3 if on else 6] * 2
            assert handle.report.strip == "█·"


def test_a_skip_runs_no_other_hook(net):
    fetch = Fetch()
    hooked(net, fetch, "fetch")
    assert entry_of(net.blocks[0]) is None
    hooked(net, Half())
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 1, 0])) as handle, handle.run():
        for step in range(4):
            net(*inputs(step))
        assert handle.report.strip == "█·█·"
    assert fetch.count == 2


def test_hooks_run_in_the_order_in_which_the_registry_runs_them(net):
    order = []

    class Noted(Half):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            order.append(self.name)
            return args, kwargs

    for name in ("one", "two", "three"):
        hooked(net, Noted(name), name)
    net.blocks[0](*inputs(0))
    theirs = list(order)
    order.clear()
    entry_of(net.blocks[0])(inputs(0), {})
    assert order == theirs


def test_the_registry_of_vllm_omni_runs_its_hooks_in_their_sorted_order(net):
    class Registry:  # as that of vLLM-Omni 0.30, which is not installed here, keeps them
        def __init__(self, *hooks):
            self._sorted_hooks = list(hooks)

    class Added(Half):
        def __init__(self, value, times):
            super().__init__()
            self.value, self.times = value, times

        def pre_forward(self, module, *args, **kwargs):
            return (args[0] * self.times + self.value, *args[1:]), kwargs

    net.blocks[0]._hook_registry = Registry(Added(1.0, 1.0), Fetch(), Added(0.0, 2.0))
    found, _ = entry_of(net.blocks[0])((torch.ones(1, 2, 4), None), {})
    assert torch.equal(found[0], torch.full((1, 2, 4), 4.0))
