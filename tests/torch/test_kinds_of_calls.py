"""Calls of a model that differ from one another: batches, switches, what the host does around them."""

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
nn = torch.nn

from magpolicy_torch import BlockStack  # noqa: E402

WIDTH = 8


def decisions(handle):
    return [entry.decision for entry in handle.report.trace]


class Double(nn.Module):
    """Image and text, which is expanded to the batch of the images."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, img, txt):
        txt = txt.expand(img.shape[0], -1, -1)
        return img + self.inner(img) + txt.mean(dim=1, keepdim=True), txt + self.inner(txt)


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.inner(x) + x.mean(dim=1, keepdim=True)


class Joint(nn.Module):
    """As Flux: text and image side by side, and then in one sequence."""

    def __init__(self):
        super().__init__()
        self.double_blocks = nn.ModuleList(Double() for _ in range(2))
        self.single_blocks = nn.ModuleList(Single() for _ in range(2))

    def forward(self, img, txt, control=None):
        for block in self.double_blocks:
            img, txt = block(img, txt)
            if control is not None:
                img = img + control
        x = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            x = block(x)
        return x[:, txt.shape[1] :]


@pytest.fixture
def joint():
    torch.manual_seed(0)
    return Joint().eval().requires_grad_(False)


def given(kit, batch, texts=None):
    return kit.noise(1, (1, 6, WIDTH)).expand(batch, -1, -1), kit.noise(2, (1, 4, WIDTH)).expand(texts or batch, -1, -1)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
def test_a_batch_of_conditions_and_one_alone(joint, kit, order, texts, control):
    """The text of a single call is not taken for one that stands for a batch, in the same run or in a later one."""
    more = {"control": kit.noise(3, (1, 6, WIDTH))} if control else {}
    with magpolicy.attach(joint, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle:
        for batches in (order, order[::-1], order):
            with handle.run():
                for batch in (batches[0], batches[0], batches[1], batches[1]):
                    names = ("cond", "uncond")[:batch]
                    img, txt = given(kit, batch, min(texts, batch))
                    with handle.stream(*names):
                        found = joint(img, txt, **more)
                    torch.testing.assert_close(found, joint.forward(img, txt, **more), rtol=1e-5, atol=1e-6)
            assert handle.report.trace[-1].decision is Decision.REUSED


def test_a_call_inside_of_vmap_computes(kit):
    net, x = kit.Net().eval().requires_grad_(False), kit.noise(1, (3, 1, 4, WIDTH))
    expected = torch.stack([net(each) for each in x])
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle, handle.run():
        net(x[0])
        torch.testing.assert_close(torch.func.vmap(net)(x), expected)
        first = net(x[0])
        torch.testing.assert_close(net(x[0]), first)
        assert decisions(handle) == [Decision.SCHEDULED, Decision.UNSUPPORTED, Decision.NO_RESIDUAL, Decision.REUSED]
    assert "vmap" in str(handle.report)


class Listed(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("places", [(0, 0), (0, 1, 0), (0, 1, 1, 0)])
def test_a_block_that_stands_twice_in_the_list_runs_twice(kit, places):
    torch.manual_seed(0)
    blocks = [kit.Block(), kit.Block()]
    net, x = Listed([blocks[place] for place in places]).requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    expected = net(x)
    ran = []
    blocks[0].inner.register_forward_hook(lambda *_: ran.append(1))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 1, 0])) as handle, handle.run():
        assert torch.equal(net(x), expected)
        assert len(ran) == places.count(0)
        for _ in range(3):
            torch.testing.assert_close(net(x), expected)
        assert handle.report.skipped == 2
        assert len(ran) == 2 * places.count(0)


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_block_that_stands_twice_in_a_wrapped_model_says_what_serves(kit):
    block = kit.Block()
    net, x = Listed([block, block]).requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    inner = net.forward
    net.forward = lambda x: inner(x)  # as group offloading: it calls the module's own
    expected = net(x)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        assert torch.equal(net(x), expected)
        assert torch.equal(net(x), expected)
    assert decisions(handle)[1] is Decision.UNSUPPORTED
    assert "scope='model'" in str(handle.report)


def test_a_block_that_is_named_twice_is_an_error(kit):
    block = kit.Block()
    for wrong in ([block, block], [nn.ModuleList([block]), block]):
        with pytest.raises(ArgumentError, match="each of them once"):
            BlockStack(wrong)


def test_a_block_that_is_kept_under_two_names(kit):
    class Aliased(Listed):
        def __init__(self, blocks):
            super().__init__(blocks)
            self.first = self.blocks[0]

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks[1:]:
                x = block(x)
            return x

    torch.manual_seed(0)
    net, x = Aliased([kit.Block() for _ in range(3)]).requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    expected = net(x)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle, handle.run():
        for _ in range(3):
            torch.testing.assert_close(net(x), expected)
    assert handle.report.skipped == 2


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_blocks_that_are_replaced_while_attached_are_said(kit):
    torch.manual_seed(0)
    net, x = kit.Net().requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle:
        with handle.run():
            net(x), net(x)
        assert (handle.report.skipped, handle.report.problems) == (1, ())
        net.blocks[1] = kit.Block().requires_grad_(False)
        expected = net.forward(x)
        with handle.run():
            assert torch.equal(net(x), expected)
            assert torch.equal(net(x), expected)
        assert handle.report.skipped == 0
        assert "holds other blocks than when it was attached to; attach again" in str(handle.report)


def test_a_run_that_skipped_nothing_of_what_was_to_be_warns_once(kit):
    class Extra(nn.Module):
        def forward(self, x):
            return x, x.argmax()

    class Reported(Listed):
        def forward(self, x):
            for block in self.blocks:
                x, _ = block(x)
            return x

    net, x = Reported([Extra(), Extra()]), kit.noise(1, (1, 4, WIDTH))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 1, 0])) as handle:
        told = r"nothing was skipped .*Reported computes: block 0 \(Extra\) .*scope="
        with pytest.warns(UserWarning, match=told) as warned, handle.run():
            net(x), net(x), net(x), net(x)
        assert len(warned) == 1
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 1])) as handle, handle.run():
        net(x), net(x)  # nothing was to be skipped: nothing is said
    with magpolicy.attach(net, calibrate=True, steps=2) as handle:
        with pytest.warns(UserWarning, match="nothing was measured: Reported computes"), handle.run():
            net(x), net(x)
        with pytest.raises(magpolicy.RunError, match="could not be followed"):
            _ = handle.calibration


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
@pytest.mark.parametrize("wrapped", [False, True])
def test_why_a_call_cannot_be_bypassed_is_said(kit, wrapped):
    class Extra(nn.Module):
        def forward(self, x):
            return x, x.argmax()

    class Reported(Listed):
        def forward(self, x):
            for block in self.blocks:
                x, _ = block(x)
            return x

    net, x = Reported([Extra(), Extra()]), kit.noise(1, (1, 4, WIDTH))
    if wrapped:
        inner = net.forward
        net.forward = lambda x: inner(x)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        net(x), net(x)
    assert "block 0 (Extra)" in "".join(handle.report.problems)


def test_what_the_forward_keeps_is_that_of_each_call(kit):
    """On itself, and in what it was given: the first skip is made twice, and is one call all the same."""

    class Keeping(kit.Net):
        calls = 0

        def forward(self, x, kept, taken):
            self.calls += 1
            kept["x"] = self.last = x + 1
            return super().forward(x + taken.pop())

    net = Keeping().eval().requires_grad_(False)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 1, 0])) as handle, handle.run():
        for step in range(5):
            x, kept, taken = kit.noise(step, (1, 4, WIDTH)), {"x": None}, [1.0, 2.0]
            net(x, kept, taken)
            assert torch.equal(net.last, x + 1)
            assert torch.equal(kept["x"], x + 1)
            assert taken == [1.0]
    assert handle.report.skipped == 3


def test_a_skip_that_does_not_fit_is_computed_from_what_was_given(kit):
    """Models take things out of lists; the call that computes in the place of a skip finds them there."""

    class Popping(kit.Net):
        def forward(self, x, taken):
            return super().forward(x + taken.pop())

    net = Popping().eval().requires_grad_(False)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle, handle.run():
        net(kit.noise(1, (1, 4, WIDTH)), [1.0])
        net(kit.noise(1, (1, 4, WIDTH)), [1.0])
        x = kit.noise(1, (1, 5, WIDTH))
        assert torch.equal(net(x, [1.0]), net.forward(x, [1.0]))
    assert decisions(handle)[2] is Decision.MISMATCH


def test_a_model_that_writes_to_the_text_behind_its_blocks(kit):
    """What the host passed in stays its own, also where the loop over blocks is left out."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Double() for _ in range(2))

        def forward(self, img, txt):
            for block in self.blocks:
                img, txt = block(img, txt)
            txt += 1
            return img + txt.mean()

    torch.manual_seed(0)
    net = Behind().eval().requires_grad_(False)
    img, txt = given(kit, 1)
    img, txt = img.clone(), txt.clone()
    before = txt.clone()
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle, handle.run():
        for _ in range(4):
            net(img, txt)
            assert torch.equal(txt, before)
    assert handle.report.skipped == 3


def test_a_model_in_wrappers(kit):
    from magpolicy_torch.adapter import unwrap

    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    net, x = kit.Net().eval().requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["inner"]))
    compiled = torch.compile(adapted, backend="eager")
    assert unwrap(compiled) is unwrap(adapted) is adapted, "it is what is called"
    assert unwrap(compiled, peft=True) is net
    with magpolicy.attach(adapted, schedule=Schedule.from_mask([1, 0, 0])) as handle, handle.run():
        first = adapted(x)
        for _ in range(2):
            torch.testing.assert_close(adapted(x), first)
        assert handle.report.skipped == 2


def test_a_model_without_blocks_says_so():
    with pytest.raises(AdapterError, match="has no ModuleList"):
        magpolicy.attach(nn.Linear(2, 2), schedule=Schedule.from_mask([1, 0]))


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_model_that_writes_behind_its_blocks_into_what_they_returned(kit, mode):
    """As ControlNets do after the last block: that is outside of the stack, and is not counted twice."""

    class Behind(kit.Net):
        def forward(self, x, control):
            hidden = x * 1.0
            for block in self.blocks:
                hidden = block(hidden)
            hidden += control
            return hidden * 2

    torch.manual_seed(0)
    net, control = Behind().eval().requires_grad_(False), kit.noise(9, (1, 4, WIDTH))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 1, 0, 0])) as handle, handle.run(), getattr(torch, mode)():
        for step in range(5):
            x = kit.noise(step // 2, (1, 4, WIDTH))
            if step < 4:
                torch.testing.assert_close(net(x, control), net.forward(x, control))
    assert handle.report.skipped == 2


def test_a_forward_that_is_wrapped_between_two_calls(kit):
    """By something that calls the module's own, and back; where that leaves no place for the parts, it computes."""
    torch.manual_seed(0)
    x = kit.noise(1, (1, 4, WIDTH))
    for tied in (False, True):
        blocks = [kit.Block() for _ in range(3)]
        net = Listed([blocks[0]] * 3 if tied else blocks).requires_grad_(False)
        expected, inner = net(x), net.forward
        with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0, 0])) as handle:
            for wrapped in (False, True, False):
                with handle.run():
                    for step in range(5):
                        if wrapped and step == 2:
                            net.forward = lambda x, inner=inner: inner(x)
                        torch.testing.assert_close(net(x), expected)
                    net.__dict__.pop("forward", None)
                assert handle.report.skipped == (1 if tied and wrapped else 4)


@pytest.mark.parametrize("scales", [(0, 0, 1, 1), (None, 0, 1, 1), (None, None, 0, 1)])
def test_what_is_added_between_blocks_may_come_to_nothing_at_first(kit, scales):
    """A ControlNet whose scale is zero at the beginning, or that is not given at all: the skips after it add what is theirs."""

    class Controlled(kit.Net):
        def forward(self, x, control=None):
            x = x * 1.0
            for index, block in enumerate(self.blocks):
                x = block(x)
                if control is not None:
                    x = x + control[index]  # at the address of the block's input, most often
            return x

    net = Controlled().eval().requires_grad_(False)
    control = [kit.noise(index, (WIDTH,)) for index in range(len(net.blocks))]
    residual = None
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle, handle.run():
        for step, scale in enumerate(scales):
            x = kit.noise(step, (1, 4, WIDTH))
            given = {} if scale is None else {"control": [scale * each for each in control]}
            result = net(x, **given)
            added = 0 if scale is None else scale * control[-1]
            if residual is None:
                residual = result - x
            else:
                assert torch.equal(result, x + residual + added)
    assert handle.report.skipped == 3


def test_models_that_call_each_other(kit):
    """What a model's call comes back to it by is a part of that call."""

    class Calling(kit.Net):
        def forward(self, x, depth=0):
            x = super().forward(x)
            return x + self.others[0](x, depth + 1) if depth < 2 else x

    one, other = (Calling().eval().requires_grad_(False) for _ in range(2))
    one.others, other.others = [other], [one]
    x = kit.noise(1, (1, 4, WIDTH))
    expected = one(x)
    mask = Schedule.from_mask([1, 1])
    with magpolicy.attach(one, schedule=mask) as handle, magpolicy.attach(other, schedule=mask) as second:
        with handle.run(), second.run():
            assert torch.equal(one(x), expected)
            assert torch.equal(one(x), expected)
        assert (handle.report.computed, second.report.computed) == (2, 2)


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
@pytest.mark.parametrize("called", [True, False], ids=["block", "layers"])
def test_a_model_that_looks_into_its_blocks(kit, called):
    """Blocks that are lists of layers: the model may ask for one, or run them one by one, in which case it computes."""

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                linear, tanh = block
                assert block[0] is linear
                assert len(block) == 2
                x = block(x) if called else tanh(linear(x))
            return x

    net, x = Looking().eval().requires_grad_(False), kit.noise(1, (1, 4, WIDTH))
    expected = net(x)
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        assert torch.equal(net(x), expected)
        assert torch.allclose(net(x), expected)
    assert handle.report.skipped == called
    assert called != any("did not call the last of its blocks" in problem for problem in handle.report.problems)


class Pairwise(nn.Module):
    """Video and audio go from block to block as one pair, as in ComfyUI's LTX-2; or as two arguments."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x, audio_embed=None):
            video, audio = x if audio_embed is None else (x, audio_embed)
            return video + self.one(audio).sum(1, keepdim=True), audio + self.other(video).sum(1, keepdim=True)

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, video, audio):
        for block in self.blocks:
            video, audio = block(video, audio) if self.kind is None else block(self.kind((video, audio)))
        return video, audio


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("audio_tokens", [4, 0, 9])
@torch.no_grad()
def test_a_pair_of_streams_in_one_argument_skips_as_two_arguments_do(kind, audio_tokens):
    noise = torch.Generator().manual_seed(1)
    inputs = [[torch.randn(1, n, WIDTH, generator=noise) for n in (9, audio_tokens)] for _ in range(6)]
    plan, found = Schedule.from_mask((1, 1, 0, 1, 0, 0), coefficients=[0, 0, 0.5, 0, 0.3, 0.6]), []
    for way in (kind, None):
        torch.manual_seed(0)
        net = Pairwise(way).eval()
        with magpolicy.attach(net, schedule=plan) as handle, handle.run():
            found.append([net(video + 0, audio + 0) for video, audio in inputs])
        assert str(handle.report.schedule.mask) == str(plan.mask)
        assert handle.report.problems == ()
    for pair, two in zip(*found, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(pair, two, strict=True))
