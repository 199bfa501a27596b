"""semantics="diffusers" against diffusers' own hook: the real hook decides, block by block, and so do we."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy

torch = pytest.importorskip("torch", reason="the diffusers extra is not installed")
mag_cache = pytest.importorskip("diffusers.hooks.mag_cache", reason="the installed diffusers has no MagCache hook")
helpers = pytest.importorskip("diffusers.hooks._helpers", reason="the installed diffusers has no block registry")
hooks = pytest.importorskip("diffusers.hooks.hooks")
CacheMixin = pytest.importorskip("diffusers.models.cache_utils").CacheMixin


class Block(torch.nn.Module):
    """The least that counts as a transformer block; notes when it really runs."""

    def __init__(self):
        super().__init__()
        self.ran = 0

    def forward(self, hidden_states):
        self.ran += 1
        return hidden_states * 1.5


class Model(torch.nn.Module, CacheMixin):
    def __init__(self, blocks):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x):
        for block in self.transformer_blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module", autouse=True)
def known_to_diffusers():
    metadata = helpers.TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    helpers.TransformerBlockRegistry.register(model_class=Block, metadata=metadata)
    yield
    helpers.TransformerBlockRegistry._registry.pop(Block, None)


def config_of(ratios, steps, threshold, max_skips, retention):
    return mag_cache.MagCacheConfig(
        threshold=threshold, max_skip_steps=max_skips, retention_ratio=retention, num_inference_steps=steps, mag_ratios=ratios
    )


def decided_by_the_hook(ratios, steps, threshold, max_skips, retention, blocks=3, streams=("cond",), generations=1):
    """Per generation and stream, the mask of the steps at which the hook let the blocks run."""
    model, x = Model(blocks), torch.ones(1, 2, 4)
    mag_cache.apply_mag_cache(model, config_of(list(ratios), steps, threshold, max_skips, retention))
    tail, masks = model.transformer_blocks[-1], []
    with torch.no_grad():
        for _ in range(generations):
            rows = {stream: [] for stream in streams}
            for _ in range(steps):
                for stream in streams:
                    before = tail.ran
                    with model.cache_context(stream):
                        model(x)
                    rows[stream].append(tail.ran > before)
            masks.append({stream: tuple(row) for stream, row in rows.items()})
    return masks


def decided_by_us(ratios, steps, threshold, max_skips, retention):
    return magpolicy.simulate(
        list(ratios), steps=steps, threshold=threshold, max_skips=max_skips, retention=retention, semantics="diffusers"
    )


TABLES = ["flux.1-dev", "flux.1-schnell-4-doc-example", "wan2.1-t2v-1.3b", "hunyuanvideo-1.5-720p-unsloth", "chroma"]
SETTINGS = [(0.06, 3, 0.2), (0.24, 5, 0.1), (0.12, 4, 0.0), (0.03, 2, 0.25), (0.0, 3, 0.2), (1.0, 1, 0.5), (5.0, 99, 0.0)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 4, 20, 28, 50, 61])
def test_published_tables(table, steps):
    ratios = magpolicy.preset(table).curve.of("cond")
    for threshold, max_skips, retention in SETTINGS:
        (masks,) = decided_by_the_hook(ratios, steps, threshold, max_skips, retention)
        assert decided_by_us(ratios, steps, threshold, max_skips, retention).mask == masks["cond"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.9375, 1.0, 1.0625]) | st.floats(0.5, 1.6), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.06, 0.0625, 0.125]) | st.floats(0, 0.6),
    st.integers(0, 6),
    st.floats(0, 1),
)
def test_any_table(ratios, steps, threshold, max_skips, retention):
    (masks,) = decided_by_the_hook(ratios, steps, threshold, max_skips, retention)
    assert decided_by_us(ratios, steps, threshold, max_skips, retention).mask == masks["cond"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.7, 1.4), min_size=3, max_size=20), st.integers(0, 100), st.sampled_from([-1, 0, 1, 3]))
def test_thresholds_at_the_edge_of_an_error_that_is_met(ratios, which, nudge):
    free = decided_by_us(ratios, len(ratios), 5.0, 99, 0.0)
    error = free.modelled[0][1 + which % (len(ratios) - 1)]
    threshold = error
    for _ in range(abs(nudge)):  # by steps of float64, far finer than the accumulators
        threshold = float(np.nextafter(threshold, np.inf if nudge > 0 else 0.0))
    (masks,) = decided_by_the_hook(ratios, len(ratios), threshold, 99, 0.0)
    assert decided_by_us(ratios, len(ratios), threshold, 99, 0.0).mask == masks["cond"]


# Not 1: with a single block both of the hook's halves sit on it, and a skip never reaches the half that counts steps.
@pytest.mark.parametrize("blocks", [2, 5])
def test_streams_and_generations(blocks):
    ratios = magpolicy.preset("flux.1-dev").curve.of("single")
    ours = decided_by_us(ratios, 28, 0.24, 5, 0.1)
    generations = decided_by_the_hook(ratios, 28, 0.24, 5, 0.1, blocks, streams=("cond", "uncond"), generations=2)
    assert generations == [{"cond": ours.mask, "uncond": ours.mask}] * 2  # one table serves both


def test_the_table_diffusers_ships_is_our_preset():
    ours = magpolicy.preset("flux.1-dev").curve.of("single")
    assert ours == pytest.approx(mag_cache.FLUX_MAG_RATIOS.tolist())


@pytest.mark.parametrize("max_skips", [0, 3])
def test_a_real_flux_transformer(max_skips):
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=False, axes_dims_rope=(4, 2, 2),
    ).eval()  # fmt: skip
    ran = []
    model.single_transformer_blocks[-1].attn.register_forward_pre_hook(lambda *_: ran.append(True))
    ratios, steps = mag_cache.FLUX_MAG_RATIOS, 12
    model.enable_cache(config_of(ratios, steps, 0.24, max_skips, 0.1))
    mask = []
    with torch.no_grad(), model.cache_context("cond"):
        for step in range(steps):
            ran.clear()
            model(
                hidden_states=torch.randn(1, 4, 4), encoder_hidden_states=torch.randn(1, 3, 8),
                pooled_projections=torch.randn(1, 8), timestep=torch.tensor([1 - step / steps]),
                img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3),
            )  # fmt: skip
            mask.append(bool(ran))
    assert decided_by_us(ratios.tolist(), steps, 0.24, max_skips, 0.1).mask == tuple(mask)
    assert all(mask) == (max_skips == 0)
