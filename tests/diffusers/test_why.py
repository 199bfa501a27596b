"""Every reason for which an evaluation computes that could have skipped: each is produced with a real model, and told in words.

``Why`` and ``Decision`` list them; one that nothing here produces fails.
"""

import re
import warnings
from collections import Counter

import pytest
from attrs import frozen

import magpolicy
from magpolicy import Curve, Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

from magpolicy_torch import BlockStack, Layout  # noqa: E402
from magpolicy_torch.adapter import HostRun, Why  # noqa: E402

nn = torch.nn
WAN = CASES["WanTransformer3DModel"]
ONCE = {"schedule": Schedule.from_mask([1, 0, 0, 0])}
"""Settings that ask for three skips of four."""


@frozen
class Told:
    """What the user was told of a run."""

    warnings: tuple
    report: object = None

    @property
    def in_vain(self):
        return [words for words in self.warnings if words.startswith("nothing was skipped of what was to be: ")]


def told(target, run, settings=ONCE, **more):
    """``run(handle)`` in a handle on ``target``; what warned until it was detached, and the report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with magpolicy.attach(target, **settings, **more) as handle:
            run(handle)
            report = handle.report if handle.runs else None
    return Told(tuple([str(w.message) for w in caught if issubclass(w.category, UserWarning)]), report)


MAKES = {}


def makes(*reasons):
    """The function returns what was told in a run that computes for these reasons."""

    def note(function):
        MAKES.update(dict.fromkeys(reasons, function))
        return function

    return note


# Models: plain modules in the user's own loop ------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class Net(nn.Module):
    """Three blocks; ``between(index, x, block)`` makes the call of each."""

    def __init__(self, between=lambda index, x, block: block(x), kind=Block, count=3):
        super().__init__()
        self.blocks, self.between = nn.ModuleList(kind() for _ in range(count)), between

    def forward(self, x, **given):
        for index, block in enumerate(self.blocks):
            x = self.between(index, x, block, **given)
        return x


def returning(make):
    """Blocks that return ``make`` of what they would."""

    class Returning(Block):
        def forward(self, x):
            return make(super().forward(x))

    return Returning


def x(step=0, tokens=6, batch=1):
    return torch.randn(batch, tokens, 8, generator=torch.Generator().manual_seed(step))


def four(net, **given):
    def run(handle):
        with handle.run(steps=4), torch.no_grad():
            for step in range(4):
                net(x(step), **given)

    return run


def followed(net, **more):
    return told(net, four(net), **more)


# The first call shows that the blocks cannot be followed -------------------------------------------------------------------


@makes(Why.NO_TENSOR)
def hidden_states_in_a_list_of_three():
    class Listed(Block):
        def forward(self, x):
            return [super().forward(x[0]), *x[1:]]

    net = Net(lambda index, x, block: block(x if isinstance(x, list) else [x, 1, 2]), kind=Listed)
    return told(net, four(net))


@makes(Why.FEW_TOKENS)
def a_layout_that_describes_too_much_text():
    net = Net()
    return followed(net, blocks=BlockStack(net.blocks, layout=Layout(hidden="x", prefix=9)))


@makes(Why.WHICH_TOKENS)
def tokens_from_nowhere():
    return followed(Net(lambda index, x, block: block(torch.cat([x[:, :2] * 3, x * 2], 1) if index == 1 else x)))


@makes(Why.STRANGE_RESULT)
def blocks_that_return_an_object():
    return followed(Net(lambda index, x, block: block(x).pop(), kind=returning(lambda x: {x})))


@makes(Why.OTHER_STATES, Decision.UNSUPPORTED)
def blocks_that_return_indices():
    return followed(Net(lambda index, x, block: block(x)[0], kind=returning(lambda x: (x, x.argmax()))))


@makes(Why.OTHER_IMAGE)
def a_stack_that_ends_on_another_device():
    return followed(Net(lambda index, x, block: block(x), kind=returning(lambda x: x.to("meta")), count=1))


@makes(Why.OTHER_SECOND)
def a_second_stream_cut_within_the_stack():
    class Both(Block):
        def forward(self, x, audio):
            return super().forward(x), audio * 2

    class Sounding(Net):
        def forward(self, x):
            audio = x * 2
            for block in self.blocks:
                x, audio = block(x, audio)
                audio = audio[:, :4]
            return x + audio.mean()

    return followed(Sounding(kind=Both))


@makes(Why.ORDER)
def blocks_called_backwards():
    class Backwards(Net):
        def forward(self, x):
            for block in reversed(self.blocks):
                x = block(x)
            return x

    return followed(Backwards())


@makes(Why.LEFT_OUT)
def the_last_block_left_out():
    return followed(Net(lambda index, x, block: x if index == 2 else block(x)))


@makes(Why.TWICE)
def one_block_twice_in_a_wrapped_model():
    net = Net()
    net.blocks[1], inner = net.blocks[0], net.forward
    net.forward = lambda x: inner(x)
    return followed(net)


@makes(Why.REPLACED)
def blocks_replaced_after_attaching():
    net = Net()

    def run(handle):
        net.blocks[1] = Block()
        four(net)(handle)

    return told(net, run)


# A skip does not go as the computed call did -------------------------------------------------------------------------------


def leaving(*runs):
    net = Net(lambda index, x, block, leave: x if leave and index == 1 else block(x))

    def run(handle):
        for leave in runs:
            with handle.run(), torch.no_grad():
                for step in range(4):
                    net(x(step), leave=leave(step))

    return told(net, run)


@makes(Why.NOT_AS_OBSERVED)
def the_last_block_left_out_later():
    left_out = []
    net = Net(lambda index, x, block: x if index == 2 and left_out else block(x))

    def run(handle):
        four(net)(handle)
        left_out.append(True)
        four(net)(handle)

    return told(net, run)


@makes(Why.OTHER_BLOCKS)
def a_skip_of_a_call_that_leaves_out_a_block_as_an_earlier_one_did():
    return leaving(lambda step: True, bool)


@makes(Why.OTHERWISE)
def a_skip_of_a_call_that_leaves_out_a_block():
    return leaving(bool)


@makes(Why.BESIDE)
def what_blocks_return_beside_their_states_is_used():
    net = Net(lambda index, x, block: torch.add(*block(x)), kind=returning(lambda x: (x, x.mean())))
    return followed(net)


# Something around the call keeps it from being skipped ---------------------------------------------------------------------


@makes(Why.ANSWERED, Decision.ANSWERED)
def a_cache_inside_the_forward():
    class Caching(Net):
        last = None

        def forward(self, x):
            if self.last is None or x[0, 0, 0] > 100:
                self.last = super().forward(x)
            return self.last

    return followed(Caching())


def wan_loop(handle, model, steps=4, text="a cat", grad=False, size=8, **more):
    with torch.set_grad_enabled(grad):
        for step in range(steps):
            text_now = text(step) if callable(text) else text
            size_now = size(step) if callable(size) else size
            model(**WAN.inputs(Draw((Row(step, text_now),), level=1 - step / steps, size=size_now)), **more)


@makes(Why.OTHER_CACHE)
def another_cache_enabled_after_attaching():
    model = WAN.make()

    def run(handle):
        model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.0))
        try:
            with model.cache_context("cond"):
                wan_loop(handle, model)
        finally:
            model.disable_cache()

    return told(model, run, steps=4)


@makes(Why.TRANSFORMED)
def called_inside_of_vmap():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=4):
            for step in range(4):
                torch.func.vmap(net)(x(step)[None])

    return told(net, run)


@makes(Why.CHECKPOINTING)
def gradient_checkpointing():
    model = WAN.make().requires_grad_(True)
    model.enable_gradient_checkpointing()
    return told(model, lambda handle: wan_loop(handle, model, grad=True), steps=4)


@makes(Why.GRADIENTS)
def gradients_of_the_input():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=4):
            for step in range(4):
                net(x(step).requires_grad_())

    return told(net, run)


@makes(Why.ANOTHER_PROMPT)
def another_prompt_at_every_step():
    model = WAN.make()
    mask = Schedule.from_mask([1] + [0] * 29)
    return told(model, lambda handle: wan_loop(handle, model, 30, text=str), {"schedule": mask, "steps": 30})


@makes(Why.TOO_MANY)
def more_prompts_at_a_step_than_guidance_has():
    model = WAN.make()

    def run(handle):
        with torch.no_grad():
            for step in range(4):
                for text in range(14):
                    model(**WAN.inputs(Draw((Row(0, str(text)),), level=1 - step / 4)))

    return told(model, run, steps=4)


@makes(Why.TOO_LONG, Decision.PAST_END)
def a_loop_that_is_longer_than_was_said():
    model = WAN.make()

    def run(handle):
        with handle.run(), torch.no_grad():
            for step in range(6):
                WAN.call(model, Draw((Row(step),), level=1 - step / 6))

    return told(model, run)


# Nothing tells the run -----------------------------------------------------------------------------------------------------


@makes(Why.NO_LENGTH)
def a_loop_of_no_known_length():
    model = WAN.make()
    return told(model, lambda handle: wan_loop(handle, model), {"speedup": 2.0, "learn": False})


class Timeless(diffusers.ModelMixin, diffusers.ConfigMixin):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, hidden_states):
        return self.net(hidden_states)


@makes(Why.NO_TIMESTEP)
def a_model_that_is_given_no_timestep():
    model = Timeless().requires_grad_(False)
    return told(model, lambda handle: [model(x(step)) for step in range(4)], steps=4, blocks=BlockStack(model.net.blocks))


class Bare(diffusers.DiffusionPipeline):
    """A pipeline without a scheduler."""

    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)

    def __call__(self):
        wan_loop(None, self.transformer)


@makes(Why.NO_LIST)
def a_pipeline_without_a_scheduler():
    pipe = Bare(WAN.make())
    return told(pipe, lambda handle: pipe(), {"speedup": 2.0, "learn": False})


@makes(Why.NO_RUN)
def a_module_called_outside_of_a_run():
    net = Net().requires_grad_(False)
    return told(net, lambda handle: [net(x(step)) for step in range(4)])


@makes(Why.TOO_LONG_UNNAMED)
def guidance_whose_calls_are_not_named():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=6):
            for step in range(6):
                net(x(step)), net(-x(step))

    return told(net, run)


@makes(Why.TRAINS)
def training():
    model = WAN.make().requires_grad_(True).train()
    return told(model, lambda handle: wan_loop(handle, model, grad=True), steps=4)


# Decisions: of the rule, and of a run ----------------------------------------------------------------------------------------


def ruled(ratios=(1.0,) * 4, **settings):
    net = Net().requires_grad_(False)
    return told(net, four(net), {"ratios": list(ratios), "threshold": 0.1, "max_skips": 2, "retention": 0.0, **settings})


@makes(Decision.RETENTION)
def retention_of_all_but_a_little():
    return ruled(retention=0.99)


@makes(Decision.WINDOW)
def a_window_at_the_first_step():
    return ruled(end_step=0)


@makes(Decision.FORCED)
def every_step_forced():
    return ruled(forced=range(4))


@makes(Decision.FORBIDDEN)
def an_entry_that_the_semantics_never_skip():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=28), torch.no_grad():
            for step in range(28):
                net(x(step))

    return told(net, run, {"preset": "flux.1-dev", "semantics": "official/flux", "threshold": 9.0})


@makes(Decision.THRESHOLD)
def ratios_too_far_from_one():
    return ruled((1.0, 0.5, 0.5, 0.5))


@makes(Decision.MAX_SKIPS)
def more_skips_in_a_row_than_allowed():
    return ruled(max_skips=1)


@makes(Decision.RATIO_BOUND)
def ratios_past_the_bound():
    return ruled((1.0, 0.9, 0.9, 0.9), threshold=9.0, semantics="official/framepack")


@makes(Decision.NO_RESIDUAL)
def a_stream_for_each_step():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=4), torch.no_grad():
            for step in range(4):
                handle.go_to(step)
                with handle.stream(f"scene {step}"):
                    net(x(step))

    return told(net, run, {"ratios": [1.0] * 4, "threshold": 0.1, "max_skips": 2, "retention": 0.0})


@makes(Decision.UNCALIBRATED)
def noise_levels_that_were_not_calibrated():
    net, curve = Net().requires_grad_(False), Curve([1.0] * 4, sigmas=(1.0, 0.95, 0.92, 0.9))

    def run(handle):
        with handle.run(sigmas=(0.3, 0.2, 0.1, 0.05)), torch.no_grad():
            for step in range(4):
                net(x(step))

    return told(net, run, {"curve": curve, "threshold": 0.1, "max_skips": 2, "retention": 0.0})


@makes(Decision.JOINT)
def a_call_of_two_streams_of_which_one_computes():
    net = Net().requires_grad_(False)

    def run(handle):
        with handle.run(steps=4), handle.stream("cond", "uncond"), torch.no_grad():
            for step in range(4):
                net(x(step, batch=2))

    ratios = {"cond": [1.0] * 4, "uncond": [1.0, 0.5, 0.5, 0.5]}
    return told(net, run, {"ratios": ratios, "threshold": 0.1, "max_skips": 2, "retention": 0.0})


@makes(Decision.SCHEDULED)
def a_schedule_that_computes():
    return followed(Net().requires_grad_(False))


@makes(Decision.MISMATCH)
def another_size_at_every_step():
    model = WAN.make()
    return told(model, lambda handle: wan_loop(handle, model, size=lambda step: 8 + 4 * (step % 2)), steps=4)


@makes(Decision.NOT_FINITE)
def numbers_that_overflow():
    net = Net(lambda index, x, block: block(x) * 1e30).requires_grad_(False)
    return told(net, four(net))


@makes(Decision.UNLISTED)
def evaluations_that_a_host_did_not_list():
    net = Net().requires_grad_(False)
    request = magpolicy.AttachRequest.of({"schedule": ONCE["schedule"]})
    run = HostRun(request, request.session(4))
    for step in range(4):
        run.compute(["cond"], lambda step=step: net(x(step)), evaluation=step, sigma=0.5, why="the sampler does as it likes")
    run.end()
    return Told((run.in_vain,), run.report)


# ---------------------------------------------------------------------------------------------------------------------------


def pattern(why):
    """The sentence of a reason with anything filled in."""
    return re.sub(r"\\{\w+\\}", ".*", re.escape(why.value))


SKIPS_SOME = {Decision.FORBIDDEN, Decision.MAX_SKIPS, Decision.SCHEDULED, Decision.PAST_END, Why.TOO_LONG, Why.TOO_LONG_UNNAMED}
"""Reasons beside which something is skipped, here: nothing was in vain."""
MORE = {
    Decision.ANSWERED: pattern(Why.ANSWERED), Decision.UNSUPPORTED: pattern(Why.OTHER_STATES),
    Decision.PAST_END: pattern(Why.TOO_LONG), Decision.UNLISTED: "the sampler does as it likes",
}  # fmt: skip
"""What the row of a decision says where somebody notes a sentence of his own."""
OUTSIDE = {Why.NO_LENGTH, Why.NO_TIMESTEP, Why.NO_LIST, Why.NO_RUN, Why.TRAINS}
"""Reasons for which there is no run, and so no report: a warning tells it."""
REASONS = [*Why, *(decision for decision in Decision if decision.computes or decision is Decision.ANSWERED)]


def words(reason):
    """What is to be read of a reason. Some decisions come with a sentence that says more."""
    if isinstance(reason, Why):
        return pattern(reason)
    if reason in MORE:
        return MORE[reason]
    return f"{reason.reason} [0-9]" if reason in SKIPS_SOME else f"[0-9] evaluations? computed since {re.escape(reason.words)}"


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_whatever_computes_says_why_and_a_run_that_skips_nothing_warns_once(reason):
    found = MAKES[reason]()
    if reason in OUTSIDE:
        assert found.report is None
        assert len(found.warnings) == 1
        assert re.search(pattern(reason), found.warnings[0])
        return
    report = found.report
    assert set(Counter(found.warnings).values()) <= {1}
    if isinstance(reason, Decision):
        assert report.reasons[reason.reason] > 0
    if report.skipped:
        assert reason in SKIPS_SOME
        assert found.in_vain == []
        assert re.search(words(reason), str(report))
    else:
        assert len(found.in_vain) == 1, found.warnings
        assert re.search(words(reason), found.in_vain[0])
        assert re.search(words(reason), "\n".join(report.problems))
        assert all(line in str(report) for line in report.problems)


@pytest.mark.parametrize("settings", [
    {"schedule": Schedule.from_mask([1, 1, 1, 1])}, {"speedup": 1.0, "learn": False}, {"calibrate": True},
    {"ratios": [1.0] * 4, "threshold": 0.0, "max_skips": 2, "retention": 0.0},
    {"ratios": [1.0] * 4, "threshold": 0.1, "max_skips": 0, "retention": 0.0},
    {"ratios": [1.0] * 4, "threshold": 0.1, "max_skips": 2, "retention": 1.0},
], ids=str)  # fmt: skip
def test_a_run_that_was_to_skip_nothing_says_nothing(settings):
    net = Net().requires_grad_(False)
    found = told(net, four(net), settings)
    assert found.warnings == ()
    assert found.report.problems == ()
