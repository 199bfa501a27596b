"""Small models to attach to: real diffusers classes with random weights, and plain modules."""

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
nn = torch.nn


def noise(*key_then_shape):
    """The same numbers for the same key, whatever was drawn before."""
    *key, shape = key_then_shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(hash(tuple(key)) % 2**31))


def _image(result):
    """The image tokens, behind those of the text if they are in one tensor with them."""
    return result if isinstance(result, torch.Tensor) else result[-1]


class Case:
    """A model, how to call it with inputs of a given key, and the calls its blocks really made."""

    tokens = 9

    def __init__(self, blocks):
        torch.manual_seed(0)
        self.module = self.make().eval().requires_grad_(False)
        self.blocks = [b for name in blocks.split(",") for b in self.module.get_submodule(name)]
        self.ran = []
        for index, block in enumerate(self.blocks):
            # On something inside the block, so that whatever is put around the block's forward does not matter.
            # The last one: DiT asks its first block for the embedding of its time once more, after the stack.
            inner = [m for m in block.modules() if isinstance(m, nn.Linear)][-1]
            inner.register_forward_hook(lambda *_, index=index: self.ran.append(index))

    def around_the_stack(self, key):
        """Image tokens that go into the bare model's stack, and that come out of it."""
        entered, left = [], []
        hooks = [
            self.blocks[0].register_forward_pre_hook(
                lambda _, a, k: entered.append((a[0] if a else k["hidden_states"]).clone()), with_kwargs=True
            ),
            self.blocks[-1].register_forward_hook(lambda _, a, out: left.append(_image(out).clone())),
        ]
        self(key)
        for hook in hooks:
            hook.remove()
        return entered[0], left[0][:, -entered[0].shape[1] :]

    def with_stack_output(self, key, image):
        """What the bare model returns when its last block returns these image tokens."""

        def replace(_, args, out):
            whole = torch.cat([_image(out)[:, : -image.shape[1]], image], dim=1)
            return whole if isinstance(out, torch.Tensor) else (*out[:-1], whole)

        hook = self.blocks[-1].register_forward_hook(replace)
        result = self(key)
        hook.remove()
        return result

    def blocks_run(self):
        """Which blocks computed since last asked."""
        ran, self.ran = self.ran, []
        return list(dict.fromkeys(ran))


class Flux(Case):
    def __init__(self):
        super().__init__("transformer_blocks,single_transformer_blocks")

    def make(self):
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip

    def __call__(self, key=0, *, batch=1, tokens=None, text_tokens=5, **kwargs):
        tokens = tokens or self.tokens
        return self.module(
            hidden_states=noise(key, 1, (batch, tokens, 4)), encoder_hidden_states=noise(2, (batch, text_tokens, 8)),
            pooled_projections=noise(3, (batch, 8)), timestep=torch.full((batch,), 0.5),
            img_ids=torch.arange(tokens)[:, None].repeat(1, 3).float(), txt_ids=torch.zeros(text_tokens, 3),
            return_dict=False, **kwargs,
        )[0]  # fmt: skip


class Chroma(Flux):
    """Concatenates text before its single blocks, in front of the image tokens."""

    def make(self):
        from diffusers import ChromaTransformer2DModel

        return ChromaTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=16,
            approximator_layers=1,
        )  # fmt: skip

    def __call__(self, key=0, *, batch=1, tokens=None, text_tokens=5, **kwargs):
        tokens = tokens or self.tokens
        return self.module(
            hidden_states=noise(key, 1, (batch, tokens, 4)), encoder_hidden_states=noise(2, (batch, text_tokens, 8)),
            timestep=torch.full((batch,), 0.5), img_ids=torch.arange(tokens)[:, None].repeat(1, 3).float(),
            txt_ids=torch.zeros(text_tokens, 3), return_dict=False, **kwargs,
        )[0]  # fmt: skip


class SD3(Case):
    """Its last block returns no text."""

    tokens = 16

    def __init__(self):
        super().__init__("transformer_blocks")

    def make(self):
        from diffusers import SD3Transformer2DModel

        return SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
        )  # fmt: skip

    def __call__(self, key=0, *, batch=1, tokens=None, text_tokens=5, **kwargs):
        side = 2 * int((tokens or self.tokens) ** 0.5)
        return self.module(
            hidden_states=noise(key, 1, (batch, 4, side, side)), encoder_hidden_states=noise(2, (batch, text_tokens, 8)),
            pooled_projections=noise(3, (batch, 8)), timestep=torch.full((batch,), 500.0), return_dict=False, **kwargs,
        )[0]  # fmt: skip


class DiT(Case):
    tokens = 16

    def __init__(self):
        super().__init__("transformer_blocks")

    def make(self):
        from diffusers import DiTTransformer2DModel

        return DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, patch_size=2,
            num_embeds_ada_norm=10, norm_type="ada_norm_zero",
        )  # fmt: skip

    def __call__(self, key=0, *, batch=1, tokens=None, **kwargs):
        side = 2 * int((tokens or self.tokens) ** 0.5)
        label, time = torch.zeros(batch, dtype=torch.long), torch.full((batch,), 500)
        return self.module(noise(key, 1, (batch, 4, side, side)), time, label, return_dict=False, **kwargs)[0]


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class InPlaceBlock(Block):
    def forward(self, x):
        x += torch.tanh(self.inner(x))
        return x


class Net(nn.Module):
    """Blocks in a row; ``between`` is added in place after each, as some hosts add ControlNet residuals."""

    def __init__(self, block=Block, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList([block() for _ in range(depth)])

    def forward(self, x, between=None):
        hidden = x * 1.0
        for block in self.blocks:
            hidden = block(hidden)
            if between is not None and block is not self.blocks[-1]:
                hidden += between
        return hidden * 2


class Plain(Case):
    block = Block

    def __init__(self):
        super().__init__("blocks")

    def make(self):
        return Net(self.block)

    def __call__(self, key=0, *, batch=1, tokens=None, **kwargs):
        return self.module(noise(key, 1, (batch, tokens or self.tokens, 8)), **kwargs)


class InPlace(Plain):
    """Its blocks write into the tensor they are given."""

    block = InPlaceBlock


CASES = {case.__name__: case for case in (Flux, Chroma, SD3, DiT, Plain, InPlace)}


@pytest.fixture(autouse=True, scope="module")
def _the_torch_adapter_alone():
    """Here models of diffusers are modules like any other."""
    manager = magpolicy.manager()
    plugin = manager.get_plugin("magpolicy:diffusers")
    manager.unregister(plugin)
    yield
    manager.register(plugin, name="magpolicy:diffusers")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """These models are so small that torch's threads only cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def case(request):
    """Each model in turn."""
    if request.param not in ("Plain", "InPlace"):
        pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    return CASES[request.param]()


@pytest.fixture
def cases():
    """All models' classes by name."""
    return CASES


@pytest.fixture
def plain():
    """The plain module."""
    return Plain()


@pytest.fixture
def kit():
    """The pieces, for tests that build their own."""
    from types import SimpleNamespace

    return SimpleNamespace(noise=noise, Block=Block, Net=Net)
