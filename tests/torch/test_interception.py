"""Standing in front of a module's call: its class and its copies stay as they are, whatever is done to it since."""

import copy
import io
import pickle
import pickletools

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

MASK = Schedule.from_mask([1, 0, 1, 0])


@pytest.fixture
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def x(kit):
    return kit.noise(1, (1, 4, 8))


@pytest.fixture
def net(kit):
    torch.manual_seed(0)
    return kit.Net().eval().requires_grad_(False)


def run(handle, net, x, steps=4):
    with torch.no_grad(), handle.run(steps=steps):
        return [net(x + step) for step in range(steps)]


@pytest.mark.parametrize("name", ["Plain", "Flux"])
def test_a_model_compiled_after_its_first_run(cases, name, fresh):
    from torch._dynamo.testing import CompileCounterWithBackend

    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    case, counter = cases[name](), CompileCounterWithBackend("eager")
    for block in case.blocks:
        for module in block.modules():
            module._forward_hooks.clear()  # the case's own, which have nothing to do in a graph

    def run(handle):
        with torch.no_grad(), handle.run():
            return [case(step) for step in range(4)]

    with magpolicy.attach(case.module, schedule=MASK) as handle:
        expected = run(handle)
        case.module.compile(backend=counter, fullgraph=True)
        for _ in range(2):
            for found, wanted in zip(run(handle), expected, strict=True):
                torch.testing.assert_close(found, wanted)
            assert handle.report.schedule == MASK
        assert counter.frame_count == 2, "one graph computes, one skips"
    with torch.no_grad():
        torch.testing.assert_close(case(0), expected[0])
    assert counter.frame_count <= 3, "detached it is compiled as it was asked to be"


def test_a_model_compiled_before_and_again(net, x, fresh):
    bare = copy.deepcopy(net)
    with magpolicy.attach(bare, schedule=MASK) as handle:
        expected = run(handle, bare, x)
    net.compile(backend="eager")
    own = net._compiled_call_impl
    with magpolicy.attach(net, schedule=MASK) as handle:
        for found, wanted in zip(run(handle, net, x), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    assert net._compiled_call_impl is own


@pytest.mark.parametrize("scope", ["stack", "model"])
def test_the_class_is_the_class(net, x, scope):
    kind = type(net)
    with magpolicy.attach(net, schedule=MASK, scope=scope) as handle:
        assert type(net) is kind
        run(handle, net, x)
        assert type(net) is kind


def strings(data):
    return {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}


def saved(net):
    buffer = io.BytesIO()
    torch.save(net, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("way", [pickle.dumps, saved], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_written_names_nothing_of_ours(x, way, compiled):
    """Linear is everybody's: it is read where magpolicy is not installed."""
    net = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]))
    if compiled:
        net.compile(backend="eager")
    with magpolicy.attach(net, schedule=MASK, blocks="0"):
        assert b"magpolicy" not in way(net)
        assert b"_call_impl" not in way(net)


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_has_nothing_of_ours(net, make_copy):
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    with magpolicy.attach(net, schedule=MASK):
        twin = make_copy(net)
    assert {name: set(vars(module)) for name, module in twin.named_modules()} == before
    assert type(twin) is type(net)


class ByItsAttributes:
    """Copies as torch.fx.GraphModule does: all attributes, whatever pickling would take."""

    def __deepcopy__(self, memo):
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


def test_a_copy_that_has_all_attributes_calls_itself(kit, x):
    class Net(ByItsAttributes, kit.Net):
        pass

    net = Net().eval().requires_grad_(False)
    expected = net(x)
    with magpolicy.attach(net, schedule=MASK) as handle, handle.run():
        twin = copy.deepcopy(net)
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(twin(x), expected)
        assert not handle.report.trace
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("inner", ["super", "forward"])
def test_a_class_with_a_call_of_its_own(kit, x, inner):
    class Net(kit.Net):
        calls = 0

        def __call__(self, x, scale=1.0):
            self.calls += 1
            return self.forward(x * scale) if inner == "forward" else super().__call__(x * scale)

    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    expected = net(x, 0.5)
    net.calls = 0
    before = set(vars(net))
    with magpolicy.attach(net, schedule=MASK) as handle, handle.run():
        for _ in range(4):
            torch.testing.assert_close(net(x, 0.5), expected)
        assert handle.report.schedule == MASK
    assert net.calls == 4
    assert set(vars(net)) == before


@pytest.mark.skipif(not hasattr(torch, "accelerator"), reason="torch 2.5 traces through what stands on a module")
def test_inside_of_what_is_compiled(net, x, fresh):
    """The decision is made, whoever is compiled around the model."""
    step = torch.compile(lambda x: net(x), backend="eager")
    with magpolicy.attach(net, schedule=MASK) as handle:
        expected = run(handle, net, x)
        with torch.no_grad(), handle.run():
            for place in range(4):
                torch.testing.assert_close(step(x + place), expected[place])
        assert handle.report.schedule == MASK
