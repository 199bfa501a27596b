"""Finding the blocks, understanding them, and saying so where that fails."""

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
nn = torch.nn

from magpolicy_torch import BlockStack, Layout  # noqa: E402


class Holder(nn.Module):
    """Lists of blocks under given names."""

    def __init__(self, **lists):
        super().__init__()
        for name, blocks in lists.items():
            setattr(self, name, blocks if isinstance(blocks, nn.Module) else nn.ModuleList(blocks))


def some(kind, count=2):
    return [kind() for _ in range(count)]


def test_the_models_blocks_are_found_in_order(case):
    assert list(BlockStack.find(case.module).blocks) == case.blocks


@pytest.mark.parametrize("name", ["blocks", "layers", "whatever"])
def test_a_single_list_under_any_name(kit, name):
    model = Holder(**{name: some(kit.Block)})
    assert list(BlockStack.find(model).blocks) == list(getattr(model, name))


def test_inside_a_wrapper_and_beside_refiners(kit):
    inner = Holder(noise_refiner=some(kit.Block), context_refiner=some(kit.Block), layers=some(kit.Block, 3))
    assert list(BlockStack.find(Holder(model=inner)).blocks) == list(inner.layers)


def test_lists_within_blocks_are_not_looked_at(kit):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(some(kit.Block))

        def forward(self, hidden_states):
            return hidden_states

    model = Holder(things=some(Nested))
    assert list(BlockStack.find(model).blocks) == list(model.things)


class Other(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "no ModuleList"),
        ({"encoder": Other, "decoder": Other}, "several ModuleLists"),
        ({"some_blocks": Other, "other_blocks": nn.Identity}, "several ModuleLists"),
        ({"blocks": Other, "double_blocks": nn.Identity}, "several ModuleLists"),
        ({"transformer_blocks": Other, "temporal_transformer_blocks": Other}, "several ModuleLists"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_an_error_that_says_what_to_do(lists, message):
    model = Holder(**{name: some(kind) for name, kind in lists.items()})
    with pytest.raises(AdapterError, match=message) as raised:
        magpolicy.attach(model, ratios=[1.0], threshold=0.1, max_skips=1, retention=0.1)
    assert "blocks=" in str(raised.value)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("sides", [("down_blocks", "up_blocks"), ("input_blocks", "output_blocks")], ids="-".join)
@pytest.mark.parametrize("inside", [False, True], ids=["only its own lists", "a transformer at its entrance"])
def test_no_list_of_a_u_net_is_its_depth(kit, sides, inside):
    """Neither its way down, where it is of one class, nor what stands in front: skipping those would save next to nothing."""
    model = Holder(**{sides[0]: some(kit.Block), sides[1]: some(Other)})
    if inside:
        model.transformer_in = Holder(transformer_blocks=some(kit.Block, 1))
    with pytest.raises(AdapterError, match="is a U-Net, which has no stack of blocks; use scope='model'"):
        BlockStack.find(model)


def test_two_models_in_one(kit):
    model = Holder(encoder=Holder(blocks=some(kit.Block)), decoder=Holder(blocks=some(kit.Block)))
    with pytest.raises(AdapterError, match=r"encoder.*decoder"):
        BlockStack.find(model)


class Strange(nn.Module):
    def forward(self, q, w):
        return q


def test_argument_names_that_say_nothing(kit):
    model = Holder(blocks=some(Strange))
    with pytest.raises(AdapterError, match=r"Strange.forward\(q, w\).*layout="):
        BlockStack.find(model)
    assert len(BlockStack(model.blocks, layout=Layout(hidden="q"))) == 2
    assert len(BlockStack(model.blocks, layout={Strange: Layout(hidden=0)})) == 2


@pytest.mark.parametrize(
    "spec",
    [
        lambda m: "double_blocks,single_blocks",
        lambda m: ["double_blocks", "single_blocks"],
        lambda m: [m.double_blocks, m.single_blocks],
        lambda m: [*m.double_blocks, *m.single_blocks],
        lambda m: BlockStack([m.double_blocks, m.single_blocks]),
        lambda m: None,
    ],
)
def test_ways_to_name_the_blocks(kit, spec):
    model = Holder(single_blocks=some(kit.Block), double_blocks=some(Other))
    assert list(BlockStack.of(model, spec(model)).blocks) == [*model.double_blocks, *model.single_blocks]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda m: "blcks", "'blcks' is no submodule of Holder; its ModuleLists are: blocks"),
        (lambda m: [Other()], "not part of Holder"),
        (lambda m: [m.blocks[0], m.blocks[0]], "each of them once"),
        (lambda m: [], "at least one"),
        (lambda m: 3, "is no module"),
        (lambda m: [1], "is no module"),
    ],
)
def test_wrong_names_and_modules(kit, spec, message):
    model = Holder(blocks=some(kit.Block))
    with pytest.raises(ArgumentError, match=message):
        BlockStack.of(model, spec(model))


# Concatenated text, described or found, before and after the image tokens.


class Joint(nn.Module):
    """A block over concatenated tokens: each sees the mean of all."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.inner(x) + x.mean(dim=1, keepdim=True))


class Double(Joint):
    def forward(self, img, txt):
        return super().forward(img), super().forward(txt)


class TwoStage(nn.Module):
    """Double blocks, then single blocks over text and image together; the text leaves the model too."""

    def __init__(self, *, text_first, swapped=False):
        super().__init__()
        self.double_blocks, self.single_blocks = nn.ModuleList(some(Double)), nn.ModuleList(some(Joint))
        self.text_first = text_first

    def forward(self, img, txt, control=None):
        for block in self.double_blocks:
            img, txt = block(img, txt)
            if control is not None:
                img = img + control
        x = torch.cat([txt, img] if self.text_first else [img, txt], dim=1)
        for block in self.single_blocks:
            x = block(x)
        n = txt.shape[1]
        return x[:, n:] if self.text_first else x[:, :-n]


def two_skips(model, blocks, kit, **kwargs):
    img, txt = kit.noise(1, (1, 6, 8)), kit.noise(2, (1, 4, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0, 0]), blocks=blocks) as handle, handle.run():
        first = model(img, txt, **kwargs)
        assert first.shape == img.shape
        for moved in (0.0, 1.0):
            torch.testing.assert_close(model(img + moved, txt, **kwargs), first + moved, rtol=1e-5, atol=1e-5)
    return handle.report


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("control", [None, 0.25])
def test_text_is_found_before_or_after_the_image(kit, text_first, control):
    model = TwoStage(text_first=text_first).requires_grad_(False)
    assert two_skips(model, None, kit, control=control).skipped == 2


@pytest.mark.parametrize("layout", [{"prefix": 4}, {"prefix": "auto", "suffix": 0}, {"prefix": 4, "suffix": 0}], ids=str)
def test_text_before_the_image_as_described(kit, layout):
    model = TwoStage(text_first=True).requires_grad_(False)
    layouts = {Joint: Layout(hidden="x", **layout)}
    assert two_skips(model, BlockStack([model.double_blocks, model.single_blocks], layout=layouts), kit).skipped == 2


@pytest.mark.parametrize("layout", [{"suffix": 4}, {"prefix": 0}, {"prefix": 0, "suffix": 4}], ids=str)
def test_text_after_the_image_as_described(kit, layout):
    model = TwoStage(text_first=False).requires_grad_(False)
    layouts = {Joint: Layout(hidden="x", **layout)}
    assert two_skips(model, BlockStack([model.double_blocks, model.single_blocks], layout=layouts), kit).skipped == 2


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_description_that_does_not_add_up_computes(kit):
    model = TwoStage(text_first=True).requires_grad_(False)
    stack = BlockStack([model.double_blocks, model.single_blocks], layout={Joint: Layout(hidden="x", prefix=3, suffix=0)})
    img, txt = kit.noise(1, (1, 6, 8)), kit.noise(2, (1, 4, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), blocks=stack) as handle, handle.run():
        assert torch.equal(model(img, txt), model(img, txt))
    assert handle.report.reasons == {"scheduled": 1, "unsupported": 1}


def test_a_prefix_from_the_first_block_on(kit):
    """The residual leaves out the described text; what the last block has there passes through."""

    class Registers(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(some(Joint))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Registers().requires_grad_(False)
    x = kit.noise(1, (1, 6, 8))
    stack = BlockStack(model.blocks, layout=Layout(hidden="x", prefix=2))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), blocks=stack) as handle, handle.run():
        first, again = model(x), model(x)
        assert handle._run.get().on(handle.stack).store.nbytes == 4 * 8 * 4
    torch.testing.assert_close(again[:, 2:], first[:, 2:])
    assert torch.equal(again[:, :2], x[:, :2])


class Extra(nn.Module):
    """Returns a third thing that nobody can make up on a skip."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, context):
        return x + 1, context, self.make(x)


class Reported(nn.Module):
    """``use`` has that third thing of each block, and returns what is added behind them."""

    def __init__(self, make, use):
        super().__init__()
        self.blocks, self.use, self.seen = nn.ModuleList(Extra(make) for _ in range(2)), use, []

    def forward(self, x, context):
        add = 0
        for block in self.blocks:
            x, context, extra = block(x, context)
            add = self.use(self, extra)
        return (x, add) if add is extra else x + add


def nobody(model, extra):
    return 0


def somebody(model, extra):
    return extra.mean()


def the_caller(model, extra):
    return extra


def the_model_later(model, extra):
    model.seen.append(extra)
    return 0


EXTRAS = {"a number": torch.mean, "of the image's shape": torch.sin, "per channel": lambda x: x.mean(1)}


@pytest.mark.parametrize("make", EXTRAS.values(), ids=EXTRAS)
def test_what_blocks_return_beside_their_states_and_nobody_uses_is_made_up(kit, make):
    model, x = Reported(make, nobody), kit.noise(1, (1, 6, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0, 0])) as handle, handle.run():
        first = model(x, x + 1)
        for shift in (1, 2):
            torch.testing.assert_close(model(x + shift, x + 1), first + shift)
    assert handle.report.skipped == 2


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
@pytest.mark.parametrize("use", [somebody, the_caller, the_model_later])
@pytest.mark.parametrize("make", EXTRAS.values(), ids=EXTRAS)
def test_what_blocks_return_beside_their_states_and_somebody_uses_computes(kit, make, use):
    model, x = Reported(make, use), kit.noise(1, (1, 6, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0, 0])) as handle, handle.run():
        found = [model(x + shift, x + 1) for shift in range(3)]
    for shift, result in enumerate(found):
        torch.testing.assert_close(result, Reported(make, use)(x + shift, x + 1), rtol=0, atol=0)
    assert handle.report.reasons == {"scheduled": 1, "unsupported": 2}
    assert "beside their states" in handle.report.problems[0]


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_what_blocks_return_beside_their_states_and_no_nan_can_stand_for_computes(kit):
    model, x = Reported(lambda x: x.argmax(), nobody), kit.noise(1, (1, 6, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        assert torch.equal(model(x, x + 1), model(x, x + 1))
    assert handle.report.reasons == {"scheduled": 1, "unsupported": 1}


class Positions(nn.Module):
    """Text and image of one shape: only by what the next block is given can they be told apart."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(some(Double, 3))

    def forward(self, img, txt):
        for block in self.blocks:
            img, txt = block(img, txt)
        return img


def test_text_and_image_of_one_shape(kit):
    model = Positions().requires_grad_(False)
    img, txt = kit.noise(1, (1, 6, 8)), kit.noise(2, (1, 6, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        first = model(img, txt)
        torch.testing.assert_close(model(img + 1, txt), first + 1)
    assert handle.report.skipped == 1


def test_positions_can_be_described(kit):
    model = Positions().requires_grad_(False)
    img, txt = kit.noise(1, (1, 6, 8)), kit.noise(2, (1, 6, 8))
    stack = BlockStack(model.blocks, layout=Layout(hidden=0, text=1, result=0, text_result=1))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), blocks=stack) as handle, handle.run():
        first = model(img, txt)
        torch.testing.assert_close(model(img + 1, txt), first + 1)
    assert handle.report.skipped == 1
