"""Branches that change during a run: other prompts, prompts that travel, guidance that is scheduled or switched off.

Whoever names the branches, the pipeline, the user or nobody, the same happens.
"""

import warnings

import pytest

import magpolicy
from magpolicy import Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

from magpolicy_diffusers import _conditions  # noqa: E402

STEPS = 10
STRIP = "█···█···██"
MASK = {"schedule": Schedule.from_mask([c == "█" for c in STRIP])}
# Batched guidance that nobody names, named branches, no guidance.
PROMPTED = [
    ("StableDiffusion3Pipeline", "cfg", ("prompt_embeds", "pooled_prompt_embeds")),
    ("StableDiffusion3Pipeline", "no guidance", ("prompt_embeds", "pooled_prompt_embeds")),
    ("FluxPipeline", "true cfg", ("prompt_embeds",)),
    ("FluxPipeline", "distilled", ("prompt_embeds",)),
    ("WanPipeline", "cfg", ("prompt_embeds", "negative_prompt_embeds")),
    ("LTXPipeline", "cfg", ("prompt_embeds",)),
    ("HiDreamImagePipeline", "cfg", ("prompt_embeds_t5", "prompt_embeds_llama3", "pooled_prompt_embeds")),
]
each = pytest.mark.parametrize(("name", "way", "parts"), PROMPTED, ids=[f"{name}-{way}" for name, way, _ in PROMPTED])


def run(pipe, name, way, parts, change):
    """A run whose prompts become ``change(prompt, step)`` after each step. Also the largest number of residuals held."""
    held, handles = [0], magpolicy.attached(pipe)

    def callback(pipe, step, timestep, kwargs):
        held.append(handles[0].residuals_held if handles else 0)
        return {part: change(kwargs[part], step + 1) for part in parts}

    made = PIPES[name].run(pipe, way, STEPS, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=list(parts))
    return made, max(held)


def travel(prompt, step):
    """A little at each step, as prompts do that are blended."""
    return prompt + 0.05 * prompt.roll(1, -1)


def at(*steps):
    """Another prompt from each of these steps on."""
    return lambda prompt, step: prompt.roll(3, -1) * 1.3 if step in steps else prompt


def streams_of(pipe_way):
    return {"cond"} if pipe_way in ("no guidance", "distilled") else {"cond", "uncond"}


@each
def test_a_prompt_that_travels_is_skipped_as_ever(name, way, parts):
    pipe = PIPES[name].make()
    with magpolicy.attach(pipe, **MASK) as handle, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, held = run(pipe, name, way, parts, travel)
    assert handle.report.strip == STRIP
    assert set(handle.report.schedule.streams) == streams_of(way)
    assert held <= len(streams_of(way))
    assert handle.report.problems == ()


@each
def test_the_first_step_of_another_prompt_computes(name, way, parts):
    pipe = PIPES[name].make()
    with magpolicy.attach(pipe, **MASK) as handle, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, held = run(pipe, name, way, parts, at(2))
    assert handle.report.strip == "█·█·█···██"
    assert set(handle.report.schedule.streams) == streams_of(way)
    assert held <= len(streams_of(way))
    assert any("became another one during the run" in words for words in handle.report.problems)
    assert {e.decision for e in handle.report.trace if e.step == 2 and e.stream == "cond"} == {Decision.NO_RESIDUAL}


def test_a_branch_whose_prompt_stays_goes_on():
    pipe = PIPES["FluxPipeline"].make()
    with magpolicy.attach(pipe, **MASK) as handle:
        run(pipe, "FluxPipeline", "true cfg", ("prompt_embeds",), at(*range(STEPS)))
    skips = [e.stream for e in handle.report.trace if e.decision.skip]
    assert set(skips) == {"uncond"}
    assert len(skips) == STRIP.count("·")


@pytest.mark.parametrize(("name", "way", "parts"), [row for row in PROMPTED if row[:2] != ("FluxPipeline", "true cfg")])
def test_another_prompt_at_each_step_computes_and_says_so(name, way, parts):
    pipe, plain = PIPES[name].make(), PIPES[name].make()
    expected, _ = run(plain, name, way, parts, at(*range(STEPS)))
    with magpolicy.attach(pipe, **MASK) as handle, pytest.warns(UserWarning, match="nothing was skipped of what was") as told:
        made, held = run(pipe, name, way, parts, at(*range(STEPS)))
    assert len([each for each in told if "nothing was skipped" in str(each.message)]) == 1
    assert torch.equal(made, expected)
    assert handle.report.skipped == 0
    assert set(handle.report.schedule.streams) == streams_of(way)
    assert held <= len(streams_of(way))


def test_a_prompt_that_is_written_in_place_is_noticed():
    pipe = PIPES["FluxPipeline"].make()

    def write(prompt, step):
        return prompt.mul_(-1.0) if step == 2 else prompt

    with magpolicy.attach(pipe, **MASK) as handle:
        run(pipe, "FluxPipeline", "distilled", ("prompt_embeds",), write)
    assert handle.report.strip == "█·█·█···██"


def test_a_prompt_of_another_length_is_another_one():
    pipe = PIPES["WanPipeline"].make()
    longer = lambda prompt, step: torch.cat([prompt, prompt[:, :2]], 1) if step == 2 else prompt  # noqa: E731
    with magpolicy.attach(pipe, **MASK) as handle:
        run(pipe, "WanPipeline", "cfg", ("prompt_embeds", "negative_prompt_embeds"), longer)
    assert handle.report.strip == "█·█·█···██"


@pytest.mark.parametrize(
    ("name", "parts"),
    [("StableDiffusion3Pipeline", ("prompt_embeds", "pooled_prompt_embeds")), ("HiDreamImagePipeline", PROMPTED[-1][2])],
)
def test_guidance_that_a_callback_switches_off(name, parts):
    """The branch that stays goes on with its own residual; what is kept of the other one is freed soon."""
    pipe, held = PIPES[name].make(), []

    def off(pipe, step, timestep, kwargs):
        held.append(handle.residuals_held)
        if step != 1:
            return {}
        pipe._guidance_scale = 0.0
        return {part: kwargs[part].chunk(2, 1 if "llama3" in part else 0)[1] for part in parts}

    with magpolicy.attach(pipe, **MASK) as handle:
        PIPES[name].run(pipe, "cfg", STEPS, callback_on_step_end=off, callback_on_step_end_tensor_inputs=list(parts))
    report = handle.report
    assert "".join("█" if e.decision.computes else "·" for e in report.trace if e.stream == "cond") == STRIP
    assert sum(e.stream == "uncond" for e in report.trace) == 2
    assert set(report.schedule.streams) == {"cond", "uncond"}
    assert held[:3] == [2, 2, 2]
    assert held[6:8] == [1, 1]
    assert report.problems == ()


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "WanPipeline", "FluxPipeline"])
def test_guidance_that_is_scheduled_changes_no_branch(name):
    """What is mixed of the branches is no concern of theirs."""
    pipe = PIPES[name].make()

    def schedule(pipe, step, timestep, kwargs):
        pipe._guidance_scale = 2.0 + step
        return {}

    with magpolicy.attach(pipe, **MASK) as handle:
        way = next(way for way in PIPES[name].ways if "cfg" in way)
        PIPES[name].run(pipe, way, STEPS, callback_on_step_end=schedule)
    assert handle.report.strip == STRIP


WAN = CASES["WanTransformer3DModel"]


@pytest.mark.parametrize("named", ["nobody", "stream", "cache_context"])
def test_ones_own_loop(named):
    """Guidance in two calls, the positive prompt another one from step 2 on."""
    model = WAN.make()

    def call(role, step, text):
        draw = Draw((Row((0, 0), text),), level=1 - step / STEPS)
        if named == "nobody":
            return WAN.call(model, draw)
        with handle.stream(role) if named == "stream" else model.cache_context(role):
            return WAN.call(model, draw)

    with magpolicy.attach(model, steps=STEPS, **MASK) as handle, torch.no_grad():
        for step in range(STEPS):
            call("cond", step, "a cat" if step < 2 else "a dog that waits")
            call("uncond", step, "")
    trace = handle.report.trace
    strips = {s: "".join("█" if e.decision.computes else "·" for e in trace if e.stream == s) for s in ("cond", "uncond")}
    assert len(trace) == 2 * STEPS
    assert strips == {"cond": "█·█·█···██", "uncond": STRIP}


def test_guidance_that_begins_midway_before_the_other_branch():
    """One call more, at the place of the one that was: nobody reuses what is another's."""
    model = WAN.make()

    def texts(step):
        return ("a cat",) if step < 2 else ("", "a cat")

    def loop():
        return [WAN.call(model, Draw((Row((0, 0), text),), level=1 - s / STEPS)) for s in range(STEPS) for text in texts(s)]

    with magpolicy.attach(model, steps=STEPS, **MASK) as handle, torch.no_grad():
        loop()
    at_change = [e.decision for e in handle.report.trace if e.step == 2]
    assert at_change == [Decision.NO_RESIDUAL] * 2
    assert handle.report.skipped == 6 - 1


class TestDistance:
    def look(self, *conditions, streams=("cond",), rows=1):
        seen = _conditions.Conditions()
        return [seen.look_at(streams, condition, torch.zeros(rows, 1)) for condition in conditions]

    def test_small_moves_add_up_until_it_is_computed(self):
        seen, prompt = _conditions.Conditions(), torch.ones(1, 4, 8)
        moved = [prompt * (1 + 0.2 * n) for n in range(6)]
        assert [bool(seen.look_at(["cond"], {"text": p}, torch.zeros(1, 1))) for p in moved] == [
            False,
            False,
            False,
            True,
            False,
            False,
        ]
        seen = _conditions.Conditions()
        for p in moved:
            assert not seen.look_at(["cond"], {"text": p}, torch.zeros(1, 1))
            seen.computed(["cond"])

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (torch.tensor([9]), torch.tensor([8])),  # labels
            (torch.tensor([[True, False]]), torch.tensor([[True, True]])),  # masks
            (torch.ones(1, 4, 8), torch.ones(1, 5, 8)),
            ([torch.ones(3, 4)], [torch.ones(3, 4), torch.ones(3, 4)]),
            (None, torch.ones(1)),
            ([1, 2], [1, 3]),  # layers that are left out
        ],
    )
    def test_what_has_no_distance_is_far(self, one, other):
        assert self.look({"x": one}, {"x": other}) == [[], ["cond"]]

    @pytest.mark.parametrize("shape", [(2, 4, 8), (3, 2, 4, 8)], ids=["samples first", "layers first"])
    def test_each_stream_of_a_batch_by_itself(self, shape):
        before = torch.ones(shape)
        after = before.clone()
        after.select(len(shape) - 3, 1).mul_(-1)
        assert self.look({"x": before}, {"x": after}, streams=("uncond", "cond"), rows=2) == [[], ["cond"]]
        assert self.look([[*before]], [[*after]], streams=("uncond", "cond"), rows=2)[1] or len(shape) == 4

    def test_a_few_entries_stand_for_many(self):
        wide = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
        moved = wide + 0.4 * torch.randn(64, 4096, generator=torch.Generator().manual_seed(1))
        one, other = (tuple(_conditions._noted({"x": value}, 1, None)) for value in (wide, moved))
        assert sum(part.numel() for part in one if isinstance(part, torch.Tensor)) <= 4097
        assert _conditions.distance(one, other) == pytest.approx(0.4, abs=0.02)


def psnr(one, other):
    return float(-10 * torch.log10((one.clamp(-1, 1) / 2 - other.clamp(-1, 1) / 2).square().mean()))


@pytest.mark.slow
def test_a_picture_stays_near_its_full_run_across_another_prompt(monkeypatch):
    """The demo's trained model; the digit becomes another one after a third of the steps."""
    from magpolicy_demo import model as demo

    network, steps = demo.load(), 27
    noise = torch.randn(8, 49, 16, generator=torch.Generator().manual_seed(1))
    digits = torch.arange(8)

    def picture(change, handle=None):
        tokens = noise
        for step in range(steps):
            level = torch.full((8,), 1 - step / steps)
            labels = digits if step < change else (digits + 3) % 10
            velocities = [demo.velocity(network, tokens, level, given) for given in (labels, torch.full_like(labels, 10))]
            tokens = tokens - (velocities[1] + 2 * (velocities[0] - velocities[1])) / steps
        return demo.unpatchify(tokens)

    def skipped(change):
        with magpolicy.attach(network, steps=steps, computed=13, learn=False):
            return picture(change)

    with torch.no_grad():
        changes = (8, 9, 10)
        full = [picture(change) for change in changes]
        ours = [psnr(skipped(change), one) for change, one in zip(changes, full, strict=True)]
        steady = psnr(skipped(steps), picture(steps))
        monkeypatch.setattr("magpolicy_diffusers._conditions.FAR", float("inf"))
        on = [psnr(skipped(change), one) for change, one in zip(changes, full, strict=True)]
    print(steady, ours, on)
    assert min(ours) > min(on) + 3, "going on with the residuals of the prompt before"
    assert min(ours) > 30
