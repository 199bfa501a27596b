"""Other caches on the same model, whoever's they are and however they come: refused at first, or the run is theirs alone."""

import warnings

import pytest

import magpolicy
from magpolicy import AdapterError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from zoo import CASES  # noqa: E402
from zoo._case import Draw  # noqa: E402

from diffusers import hooks  # noqa: E402

FLUX, EXPERTS = PIPES["FluxPipeline"], PIPES["WanPipeline two experts"]
SKIPPING = {"schedule": Schedule.from_mask((1, 1, 0, 1, 0, 0))}


def attention(pipe):
    """All steps but the first one: FasterCache has nothing to go by there, and fails."""
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 0.99),
        "current_timestep_callback": lambda: float(pipe.scheduler.sigmas[pipe.scheduler.step_index or 0]),
        "spatial_attention_block_identifiers": ("transformer_blocks", "single_transformer_blocks", "blocks"),
    }


_TAYLOR = {"cache_interval": 3, "disable_cache_before_step": 1, "max_order": 1, "taylor_factors_dtype": torch.float32}


class Halves(hooks.ModelHook):
    """Somebody's own: keeps the result of a call for the next one."""

    _is_stateful = True

    def __init__(self):
        super().__init__()
        self.kept, self.count = None, 0

    def new_forward(self, module, *args, **kwargs):
        self.count += 1
        if self.count % 2 or self.kept is None:
            self.kept = self.fn_ref.original_forward(*args, **kwargs)
        return self.kept

    def reset_state(self, module):
        self.kept, self.count = None, 0
        return module


def apply_halves(module, config):
    hooks.HookRegistry.check_if_exists_or_initialize(module).register_hook(Halves(), "halves")


# Per cache: its config, and the function that puts it on without the model knowing.
MAG = hooks.MagCacheConfig(threshold=10.0, max_skip_steps=3, retention_ratio=0.2, num_inference_steps=6, mag_ratios=[1.0] * 6)
CACHES = {
    "MagCache": (lambda pipe: MAG, hooks.apply_mag_cache),
    "FirstBlockCache": (lambda pipe: hooks.FirstBlockCacheConfig(threshold=1e9), hooks.apply_first_block_cache),
    "TaylorSeer": (lambda pipe: hooks.TaylorSeerCacheConfig(**_TAYLOR), hooks.apply_taylorseer_cache),
    "TaylorSeer lite": (
        lambda pipe: hooks.TaylorSeerCacheConfig(**_TAYLOR, use_lite_mode=True),
        hooks.apply_taylorseer_cache,
    ),
    "PyramidAttentionBroadcast": (
        lambda pipe: hooks.PyramidAttentionBroadcastConfig(**attention(pipe)),
        hooks.apply_pyramid_attention_broadcast,
    ),
    "FasterCache": (
        lambda pipe: hooks.FasterCacheConfig(
            **attention(pipe), attention_weight_callback=lambda _: 0.5, is_guidance_distilled=True
        ),
        hooks.apply_faster_cache,
    ),
    "of one's own": (lambda pipe: None, apply_halves),
}
WAYS = [
    pytest.param(name, by_config, id=f"{name}-{'enable_cache' if by_config else 'function'}")
    for name in CACHES
    for by_config in ((False,) if name == "of one's own" else (True, False))
]


# FasterCache fails in a run that it did not see begin; hooks on attention alone are seen when the next run begins.
DURING = [
    way
    for way in WAYS
    if way.values[0] in ("MagCache", "FirstBlockCache") or (way.values[1] and way.values[0] != "FasterCache")
]


def run(pipe, **more):
    return FLUX.run(pipe, "distilled", 6, **more)


def enable(pipe, name, by_config, model=None):
    """Put a cache on; returns its config."""
    make, function = CACHES[name]
    config, model = make(pipe), model or pipe.transformer
    if by_config:
        model.enable_cache(config)
    else:
        function(model, config)
        # As enable_cache does: else a model that was called before does not tell new hooks its contexts.
        hooks.HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
    return config


@pytest.fixture(scope="module")
def ours():
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING):
        return run(pipe)


@pytest.mark.parametrize(("name", "by_config"), WAYS)
def test_a_cache_that_is_there_is_one_clear_error_and_nothing_is_patched(name, by_config):
    pipe = FLUX.make()
    config = enable(pipe, name, by_config)
    before = {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()}
    for target in (pipe, pipe.transformer):
        with pytest.raises(AdapterError, match="FluxTransformer2DModel has another cache, ") as raised:
            magpolicy.attach(target, **SKIPPING)
    assert {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()} == before
    if by_config:
        assert f"{type(config).__name__}; call its disable_cache() first" in str(raised.value)
        pipe.transformer.disable_cache()
    while not by_config:  # as the message says it, for each kind of hook that the cache has
        take_off = str(raised.value).partition("take it off first: ")[2]
        exec(take_off, {"diffusers": diffusers, "model": pipe.transformer})
        try:
            magpolicy.attach(pipe, **SKIPPING).detach()
            break
        except AdapterError as error:
            raised.value.args = error.args
    magpolicy.attach(pipe, **SKIPPING).detach()


@pytest.mark.parametrize("before", [0, 1], ids=["at once", "after a run"])
@pytest.mark.parametrize(("name", "by_config"), WAYS)
def test_a_cache_that_is_enabled_later_has_the_run_alone(ours, name, by_config, before):
    alone, pipe = FLUX.make(), FLUX.make()
    for _ in range(before):
        run(alone)
    enable(alone, name, by_config)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        for _ in range(before):
            assert torch.equal(run(pipe), ours)
        enable(pipe, name, by_config)
        with pytest.warns(UserWarning, match="another cache, .* is on FluxTransformer2DModel") as told:
            found = run(pipe)
        assert len([each for each in told if "another cache" in str(each.message)]) == 1
        assert torch.equal(found, run(alone)), "neither skips on top of the other"
        assert handle.report.skipped == 0
        assert any("another cache, " in words for words in handle.report.problems)
        if by_config:
            pipe.transformer.disable_cache()
            assert torch.equal(run(pipe), ours)
            assert handle.report.problems == ()


@pytest.mark.parametrize(("name", "by_config"), DURING)
def test_a_cache_that_comes_during_a_run_has_the_rest_of_it(name, by_config):
    def put_on(pipe, step, *_):
        if step == 2:
            enable(pipe, name, by_config)
        return {}

    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle, pytest.warns(UserWarning, match="another cache, "):
        run(pipe, callback_on_step_end=put_on, callback_on_step_end_tensor_inputs=[])
    assert handle.report.strip[:3] == "██·"
    assert not any(entry.decision.skip for entry in handle.report.trace[3:])


@pytest.mark.parametrize(("name", "by_config"), WAYS)
def test_the_report_says_what_ran_of_what_the_other_cache_let_through(name, by_config):
    pipe, ran = FLUX.make(), [False]

    def next_step(pipe, step, *_):
        ran.append(False)
        return {}

    with magpolicy.attach(pipe, **SKIPPING) as handle:
        enable(pipe, name, by_config)
        for block in handle.stack.blocks:
            for part in block.modules():
                if not list(part.children()):
                    part.register_forward_pre_hook(lambda *_: ran.__setitem__(-1, True))
        with pytest.warns(UserWarning, match="another cache, "):
            run(pipe, callback_on_step_end=next_step, callback_on_step_end_tensor_inputs=[])
    assert handle.report.strip == "".join("█" if each else "·" for each in ran[:-1])
    assert ("·" in handle.report.strip) == (name in ("MagCache", "TaylorSeer lite", "of one's own")), (
        "others run a part of them"
    )


def test_a_cache_on_one_of_two_experts():
    way = next(iter(EXPERTS.ways))
    pipe = EXPERTS.make()
    with magpolicy.attach(pipe, schedule=Schedule.from_mask((1, 0, 0, 1, 0, 0))) as handle:
        EXPERTS.run(pipe, way, 6)
        mine = handle.report.reasons
        enable(pipe, "FirstBlockCache", by_config=False, model=pipe.transformer_2)
        with pytest.warns(UserWarning, match="another cache, the hook 'fbc_leader_block_hook', is on WanTransformer3DModel"):
            EXPERTS.run(pipe, way, 6)
        assert 0 < handle.report.reasons["reused"] < mine["reused"], "the other one goes on"
    with pytest.raises(AdapterError, match="another cache"):
        magpolicy.attach(pipe, **SKIPPING)


def test_a_cache_beside_a_calibration_is_said_and_nothing_is_measured():
    pipe = FLUX.make()
    with magpolicy.attach(pipe, calibrate=True) as handle:
        hooks.apply_first_block_cache(pipe.transformer, hooks.FirstBlockCacheConfig(threshold=1e9))
        with pytest.warns(UserWarning, match="nothing was measured: another cache"):
            run(pipe)
        with pytest.raises(magpolicy.RunError):
            _ = handle.calibration


def test_keys_and_values_of_text_may_be_kept():
    """What is kept there would be computed again just so: both go together."""
    case = CASES["NucleusMoEImageTransformer2DModel"]
    mask = {"schedule": Schedule.from_mask((1, 0, 1, 0))}

    def loop(model):
        arguments = [case.inputs(Draw(level=1 - step / 4)) for step in range(4)]
        text = {name: value for name, value in arguments[0].items() if "encoder" in name}
        return [model(**given | text, return_dict=False)[0] for given in arguments]

    with torch.no_grad():
        model = case.make()
        with magpolicy.attach(model, steps=4, **mask) as handle:
            expected = loop(model)
        model = case.make()
        model.enable_cache(hooks.TextKVCacheConfig())
        with magpolicy.attach(model, steps=4, **mask) as handle:
            found = loop(model)
    assert handle.report.strip == "█·█·"
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# Caches that are no hooks.


@pytest.mark.parametrize("when", ["before attaching", "after attaching", "after a run"])
@pytest.mark.parametrize("name", ["FluxPipeline", "WanPipeline", "QwenImagePipeline", "WanPipeline two experts"])
def test_cache_dit_has_the_run_alone(name, when):
    cache_dit = pytest.importorskip("cache_dit", reason="the dev extra is not installed")
    case = PIPES[name]
    way = next(iter(case.ways))
    settings = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 10.0, "max_warmup_steps": 2}

    def put_on(pipe):
        cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**settings, num_inference_steps=6))

    alone, plain, pipe = case.make(), case.make(), case.make()
    put_on(alone)
    expected, full = case.run(alone, way, 6), case.run(plain, way, 6)
    cache_dit.disable_cache(alone)
    with magpolicy.attach(plain, **SKIPPING):
        ours = case.run(plain, way, 6)
    assert len({expected.sum().item(), full.sum().item(), ours.sum().item()}) == 3
    if when == "before attaching":
        put_on(pipe)
    handle = magpolicy.attach(pipe, **SKIPPING)
    if when == "after a run":
        assert torch.equal(case.run(pipe, way, 6), ours)
    if when != "before attaching":
        put_on(pipe)
    with pytest.warns(UserWarning, match="another cache, which stands in for its blocks as cache-dit does") as told:
        found = case.run(pipe, way, 6)
    assert len([each for each in told if "another cache" in str(each.message)]) == 1
    assert torch.equal(found, expected)
    assert handle.report.skipped == 0
    cache_dit.disable_cache(pipe)
    if when == "before attaching":  # what it puts back is from before: our place is lost, and that is said
        with pytest.warns(UserWarning, match="something has replaced its __call__ since it was attached"):
            assert torch.equal(case.run(pipe, way, 6), full)
        handle = magpolicy.attach(pipe, **SKIPPING)
    assert torch.equal(case.run(pipe, way, 6), ours)
    handle.detach()
    assert torch.equal(case.run(pipe, way, 6), full)


@pytest.mark.parametrize("first", [True, False], ids=["before attaching", "after attaching"])
def test_a_forward_that_leaves_out_the_blocks_by_itself(first):
    """In the manner of TeaCache: the forward of the model is somebody's, and adds what it has kept."""

    def put_on(model):
        forward, state = model.forward, {"count": 0, "kept": None}

        def teacache(*args, **kwargs):
            state["count"] += 1
            if state["kept"] is None or state["count"] % 2:
                state["kept"] = forward(*args, **kwargs)
            return state["kept"]

        model.forward = teacache

    alone, pipe = FLUX.make(), FLUX.make()
    put_on(alone.transformer)
    expected = run(alone)
    if first:
        put_on(pipe.transformer)
    with magpolicy.attach(pipe, schedule=Schedule.from_mask((1, 1, 0, 1, 0, 0))) as handle:
        if not first:
            put_on(pipe.transformer)
        with pytest.warns(UserWarning, match="another cache .such as cache-dit. stands in"):
            assert torch.equal(run(pipe), expected)
        assert handle.report.skipped == 0


def test_blocks_that_are_called_in_another_way_from_then_on_are_observed_anew(ours):
    """By position and no more by name: the run at hand computes, the next one skips."""
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        run(pipe)
        block = pipe.transformer.transformer_blocks[0]
        names = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb")
        forward = type(block).forward

        class Other(type(block)):
            def __call__(self, *args, **kwargs):
                given = [kwargs.pop(name) for name in names]
                return super().__call__(*given, **kwargs)

            def forward(self, *args, **kwargs):
                return forward(self, *args, **kwargs)

        block.__class__ = Other
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(run(pipe), ours) or handle.report.skipped == 0
        assert torch.equal(run(pipe), ours)
