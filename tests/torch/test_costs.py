"""What is done on a skip and on a computed step, counted: operations, waits for the device, calls of blocks, bytes kept."""

import copy
from collections import Counter

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
from torch._C._profiler import _EventType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# Each of these has the host wait for the device.
WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::item"}
VIEWS = {"aten::view", "aten::detach", "aten::alias", "aten::slice", "aten::t", "aten::unsqueeze", "aten::_unsafe_view"}


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def counted(call):
    with torch.no_grad(), Counting() as counting:
        call()
    return Counter({name: count for name, count in counting.ops.items() if name not in VIEWS})


@pytest.fixture
def flux(cases):
    return cases["Flux"]()


def emptied(case):
    """The same model without a stack."""
    empty = copy.deepcopy(case.module)
    empty.transformer_blocks = empty.single_transformer_blocks = torch.nn.ModuleList()
    other = copy.copy(case)
    other.module = empty
    return other


def measured_at(case, planned, steps, measure):
    """What ``measure`` says of the calls at these steps of a run."""
    found = []
    with torch.no_grad(), magpolicy.attach(case.module, schedule=planned) as handle, handle.run():
        for step in range(max(steps) + 1):
            if step in steps:
                found.append(measure(case))
            else:
                case()
    return found


# Of each kind the first call is watched, or made in several ways: the second is the one to look at.
SKIP = Schedule.from_mask([1, 0, 0, 0]), [2]
KEPT_AND_OF_NO_USE = Schedule.from_mask([1, 0, 1, 0, 1, 1]), [2, 4]


def test_a_skip_is_what_reaches_the_result_and_one_addition(flux):
    ideal = counted(emptied(flux))
    (done,) = measured_at(flux, *SKIP, counted)
    more = done - ideal
    assert not ideal - done
    assert more == Counter({"aten::add": 1})
    assert not WAITS & done.keys()


def test_a_skip_calls_no_block(flux):
    assert measured_at(flux, *SKIP, lambda case: (case.blocks_run(), case(), case.blocks_run())[2]) == [[]]


@pytest.mark.parametrize(("second", "operations"), [((), ["lerp"]), ((0.2,), ["lerp", "sub", "add_"])], ids=["first", "second"])
def test_a_forecast_is_one_operation_more_or_three(flux, second, operations):
    ideal = counted(emptied(flux))
    forecasting = Schedule.from_mask([1, 1, 1, 0, 0], coefficients=[0, 0, 0, (0.5, *second), (1.0, *second)])
    (done,) = measured_at(flux, forecasting, [4], counted)
    assert done - ideal == Counter({"aten::add": 1} | {f"aten::{name}": 1 for name in operations})
    assert not WAITS & done.keys()


def allocated(call):
    """Bytes of every allocation that is made."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    pending, sizes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == _EventType.Allocation:
            sizes.append(max(event.extra_fields.alloc_size, 0))
    return sum(sizes)


def test_a_skip_allocates_one_tensor_more_than_what_reaches_the_result(flux):
    residual = flux.tokens * 32 * 4
    ideal = allocated(emptied(flux))
    (done,) = measured_at(flux, *SKIP, allocated)
    assert ideal > residual
    assert done == ideal + residual


def test_a_computed_step_allocates_its_residual_and_what_it_is_looked_at_with(flux):
    residual, element = flux.tokens * 32 * 4, 4
    bare = allocated(flux)
    kept, of_no_use = measured_at(flux, *KEPT_AND_OF_NO_USE, allocated)
    looking = residual + 3 * residual // element  # on a CPU alone: absolute values, and three masks
    assert residual <= kept - bare <= residual + looking + 64
    assert of_no_use == bare


def test_a_computed_step_is_the_model_and_one_subtraction(flux):
    bare = counted(flux)
    kept, of_no_use = measured_at(flux, *KEPT_AND_OF_NO_USE, counted)
    more = kept - bare
    # On a CPU the residual is looked at for NaN; on an accelerator that would be a wait.
    assert more.pop("aten::sub") == 1
    assert more.keys() <= {"aten::abs", "aten::eq", "aten::ne", "aten::mul", "aten::all", "aten::is_nonzero"} | WAITS
    assert of_no_use == bare, "the next step computes as well, so nothing is kept"


def test_a_computed_step_calls_nothing_on_the_blocks_in_between(flux):
    with magpolicy.attach(flux.module, schedule=Schedule.from_mask([1, 0, 1, 0])) as handle, handle.run():
        with torch.no_grad():
            flux(), flux(), flux()
        for block in flux.blocks:
            assert "forward" not in vars(block)
            assert type(block).__module__.startswith("diffusers")


@pytest.mark.parametrize(
    ("coefficients", "residuals"),
    [(0.5, (1, 1, 1, 1, 1, 2, 2, 0)), ((0.5, 0.2), (1, 1, 1, 1, 2, 3, 3, 0))],
    ids=["two", "three"],
)
def test_one_residual_two_or_three_with_a_forecast_and_none_when_the_plan_needs_none(flux, coefficients, residuals):
    residual = flux.tokens * 32 * 4  # float32 of the width 32
    mask, coefficients = [1, 0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, coefficients, 0]
    held = []
    planned = Schedule.from_mask(mask, coefficients=coefficients)
    with torch.no_grad(), magpolicy.attach(flux.module, schedule=planned) as handle, handle.run():
        store = handle._run.get().on(handle.stack).store
        for _ in mask:
            flux()
            held.append(store.nbytes)
    assert held == [residual * n for n in residuals]
