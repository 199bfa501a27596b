"""What the blocks do while a run is under way, on every model."""

import pytest

import magpolicy
from magpolicy import Decision, Schedule, simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

NEVER = {"ratios": [1.0] * 6, "threshold": 0.0, "max_skips": 0, "retention": 0.0}
EAGER = {"threshold": 1.0, "max_skips": 9, "retention": 0.0}


def follow(case, *mask, **settings):
    return magpolicy.attach(case.module, schedule=Schedule.from_mask(mask), **settings)


def decisions(handle):
    return [entry.decision for entry in handle.report.trace]


def test_never_skipping_changes_no_bit(case):
    plain = [case(key) for key in range(4)]
    with magpolicy.attach(case.module, **NEVER) as handle, handle.run(steps=4):
        attached = [case(key) for key in range(4)]
    assert handle.report.computed == 4
    for a, b in zip(attached, plain, strict=True):
        assert torch.equal(a, b)


def test_a_skip_reproduces_the_output_without_running_a_block(case):
    with follow(case, 1, 0, 0) as handle, handle.run():
        first = case()
        assert case.blocks_run() == list(range(len(case.blocks)))
        again = [case(), case()]
        assert case.blocks_run() == []
    for output in again:
        torch.testing.assert_close(output, first, rtol=1e-5, atol=1e-6)
    assert handle.report.skipped == 2


def test_a_skip_adds_the_residual_to_the_input_it_gets(case):
    """Not the old output: on another input, the stack's output is that input plus the old residual."""
    (x0, y0), (x1, _) = case.around_the_stack(0), case.around_the_stack(1)
    expected = case.with_stack_output(1, x1 + (y0 - x0))
    assert not torch.equal(x0, x1)
    with follow(case, 1, 0) as handle, handle.run():
        case(0)
        assert torch.equal(case(1), expected)


def test_streams_do_not_mix(case):
    with follow(case, 1, 0) as handle, handle.run():
        outputs = []
        for _ in range(2):
            for key, stream in ((0, "cond"), (1, "uncond")):
                with handle.stream(stream):
                    outputs.append(case(key))
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[3], outputs[1], rtol=1e-5, atol=1e-6)


def test_batched_and_separate_calls_can_alternate(case):
    """Computed as one batch, reused one by one and back."""
    with follow(case, 1, 0, 0) as handle, handle.run():
        with handle.stream("cond", "uncond"):
            both = case(batch=4)
        with handle.stream("cond", "uncond"):
            torch.testing.assert_close(case(batch=4), both, rtol=1e-5, atol=1e-6)
        case.blocks_run()
        for stream in ("cond", "uncond"):
            with handle.stream(stream):
                case(batch=2)
        assert case.blocks_run() == []
        assert handle.residuals_held == 2
    assert [e.stream for e in handle.report.trace] == ["cond", "uncond"] * 3


def test_batched_streams_keep_their_halves(plain, kit):
    x = kit.noise(7, (2, 5, 8))
    with follow(plain, 1, 0) as handle, handle.run():
        with handle.stream("cond", "uncond"):
            both = plain.module(x)
        for place, stream in enumerate(("cond", "uncond")):
            with handle.stream(stream):
                torch.testing.assert_close(plain.module(x[place : place + 1]), both[place : place + 1])


def test_one_stream_of_a_batch_that_needs_computing_makes_all_compute(plain):
    ratios = {"cond": [1.0, 1.0, 1.0, 1.0], "uncond": [1.0, 1.0, 5.0, 1.0]}
    with magpolicy.attach(plain.module, ratios=ratios, **EAGER) as handle, handle.run(), handle.stream("cond", "uncond"):
        for key in range(4):
            plain(key, batch=2)
    assert handle.report.schedule == simulate(ratios, batched=True, **EAGER)
    assert [e.decision for e in handle.report.trace if e.stream == "cond"][2] is Decision.JOINT


@pytest.mark.parametrize("steps", [1, 3, 8, 13])
def test_what_ran_is_what_was_simulated(plain, steps):
    settings = {"threshold": 0.05, "max_skips": 3, "retention": 0.2}
    curve = magpolicy.Curve([1.0, 1.01, 0.98, 0.99, 1.02, 0.96, 1.0, 0.97])
    with magpolicy.attach(plain.module, curve=curve, **settings) as handle, handle.run(steps=steps):
        ran = []
        for key in range(steps):
            plain(key)
            ran.append(bool(plain.blocks_run()))
    expected = simulate(curve, steps=steps, **settings)
    assert handle.report.schedule == expected
    assert tuple(ran) == expected.mask
    assert steps < 3 or expected.skipped > 0


@pytest.mark.parametrize("change", [{"tokens": 16}, {"batch": 2}], ids=str)
def test_another_shape_computes_and_is_right(cases, change):
    pytest.importorskip("diffusers")
    case = cases["Flux"]()
    alone = case(**change)
    with follow(case, 1, 0, 0, 0) as handle, handle.run():
        case()
        case()
        changed = case(**change)
        again = case(**change)
    assert decisions(handle) == [Decision.SCHEDULED, Decision.REUSED, Decision.MISMATCH, Decision.REUSED]
    assert torch.equal(changed, alone)
    torch.testing.assert_close(again, alone, rtol=1e-5, atol=1e-6)


def test_another_resolution_in_the_next_run(case):
    with follow(case, 1, 0) as handle:
        for tokens in (9, 25, 4):
            with handle.run():
                first, again = case(tokens=tokens), case(tokens=tokens)
            torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-6)
            assert handle.report.skipped == 1


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_an_odd_batch_for_two_streams_computes(plain):
    with follow(plain, 1, 0, 0) as handle, handle.run(), handle.stream("cond", "uncond"):
        plain(batch=2)
        odd = plain(5, batch=3)
    assert decisions(handle)[2:] == [Decision.MISMATCH] * 2
    assert torch.equal(odd, plain(5, batch=3))


@pytest.mark.parametrize("name", ["Flux", "Chroma"])
@pytest.mark.parametrize("text_tokens", [5, 9])  # 9: as many as image tokens
def test_controlnet_residuals_are_not_added_twice(cases, kit, name, text_tokens):
    pytest.importorskip("diffusers")
    case = cases[name]()
    control = [kit.noise(place, (1, 9, 32)) for place in range(2)]
    inject = {"controlnet_block_samples": control, "text_tokens": text_tokens}
    with follow(case, 1, 0) as handle, handle.run():
        first, again = case(**inject), case(**inject)
    assert handle.report.skipped == 1, "nothing was skipped, so nothing is shown"
    assert not torch.allclose(first, case(text_tokens=text_tokens)), "the injection has no effect, so nothing is shown"
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-6)


def test_text_of_another_length_is_followed(cases):
    """The residual covers image tokens only: a longer prompt takes it all the same."""
    pytest.importorskip("diffusers")
    case = cases["Chroma"]()
    with follow(case, 1, 0, 0) as handle, handle.run():
        first = case(text_tokens=5)
        torch.testing.assert_close(case(text_tokens=5), first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(case(text_tokens=7), first, rtol=1e-5, atol=1e-6)
    assert handle.report.skipped == 2


def test_a_host_that_adds_in_place_writes_to_nothing_it_did_not_make(plain, kit):
    """A skipped block gives its input back; what the host adds to it reaches neither the host's tensors nor the result."""
    x, control = kit.noise(1, (1, 9, 8)), torch.ones(8)
    inputs = []
    hook = plain.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append((args[0], args[0].clone())))
    with follow(plain, 1, 0, 0) as handle, handle.run():
        first, *again = (plain.module(x, between=control) for _ in range(3))
    hook.remove()
    for output in again:
        torch.testing.assert_close(output, first)
    for given, copy in inputs:
        assert torch.equal(given, copy)


def test_blocks_that_write_into_their_input(cases):
    """The first call shows that they do; the residual is right from the first call on."""
    case = cases["InPlace"]()
    computed = [case(key) for key in range(3)]
    with follow(case, 1, 0, 1, 0, 1, 0) as handle, handle.run():
        for key in range(3):
            assert torch.equal(case(key), computed[key])
            torch.testing.assert_close(case(key), computed[key])
    assert handle.report.skipped == 3


def test_blocks_that_start_to_write_into_their_input_later(plain, kit):
    """A write the first call did not show costs one skip, never a wrong residual."""
    net = plain.module
    late = {"write": False}

    def head(x):
        if late["write"]:
            x += 1.0
            return x
        return x + 1.0

    net.blocks[0].forward = head
    with follow(plain, 1, 0, 1, 0, 0) as handle, handle.run():
        plain(0)
        plain(0)
        late["write"] = True
        second = plain(1)
        assert torch.equal(plain(1), second)
        torch.testing.assert_close(plain(1), second)
    assert decisions(handle)[3:] == [Decision.NO_RESIDUAL, Decision.REUSED]


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode"])
def test_gradient_modes(case, mode):
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    case.module.requires_grad_(True)
    with follow(case, 1, 0) as handle, handle.run(), context():
        first, again = case(), case()
        store = handle._run.get().on(handle.stack).store
        residual = store.take("single", torch.empty(store._entries["single"][0].shape))
        assert not residual.requires_grad
        assert not residual.is_inference()
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-6)


def test_a_step_whose_input_wants_gradients_computes_also_after_inference_mode(plain, kit):
    x = kit.noise(1, (1, 9, 8))
    leaf, alone = x.clone().requires_grad_(), x.clone().requires_grad_()

    def attached():
        with follow(plain, 1, 0) as handle, handle.run():
            with torch.inference_mode():
                plain.module(x)
            plain.module(leaf).sum().backward()
        return handle.report

    with pytest.warns(UserWarning, match="gradients of what it is given"):
        report = attached()
    assert report.skipped == 0
    plain.module(alone).sum().backward()
    assert torch.equal(leaf.grad, alone.grad)  # through the blocks too, which a skip has none of


def test_a_residual_that_is_not_finite_is_not_reused(plain, kit):
    bad = kit.noise(1, (1, 9, 8))
    bad[0, 0, 0] = float("nan")
    with follow(plain, 1, 0, 0) as handle, handle.run():
        plain.module(bad)
        good = plain(3)
        plain(3)
    assert decisions(handle) == [Decision.SCHEDULED, Decision.NOT_FINITE, Decision.REUSED]
    assert torch.equal(good, plain(3))


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_another_dtype_midway_computes(plain):
    with follow(plain, 1, 0) as handle, handle.run():
        plain()
        plain.module.double()
        output = plain.module(torch.ones(1, 9, 8, dtype=torch.float64))
    assert decisions(handle)[1] is Decision.MISMATCH
    assert output.dtype == torch.float64


@pytest.mark.parametrize("settings", [{"offload": "cpu"}, {"storage_dtype": torch.bfloat16}], ids=str)
def test_offload_and_storage_dtype(plain, settings):
    with follow(plain, 1, 0, **settings) as handle, handle.run():
        first, again = plain(), plain()
        held = handle._run.get().on(handle.stack).store.nbytes
    loose = "storage_dtype" in settings
    torch.testing.assert_close(again, first, rtol=0.02 if loose else 1e-6, atol=0.02 if loose else 1e-6)
    assert again.dtype == torch.float32
    assert held == 9 * 8 * (2 if loose else 4)
    assert loose != torch.allclose(again, first, rtol=1e-6, atol=1e-6)


def test_one_residual_a_stream_and_none_after_the_run(plain):
    with follow(plain, 1, 0, 1, 0) as handle:
        with handle.run():
            store = handle._run.get().on(handle.stack).store
            for key in range(4):
                for stream in ("a", "b", "c"):
                    with handle.stream(stream):
                        plain(key, batch=2)
                if key == 3:
                    assert handle.residuals_held == 3
                    assert store.nbytes == 3 * 2 * 9 * 8 * 4
        assert (handle.residuals_held, store.nbytes, store.streams) == (0, 0, ())


def test_batched_residuals_do_not_hold_the_whole_batch_each(plain):
    with follow(plain, 1, 0) as handle, handle.run(), handle.stream("a", "b"):
        plain(batch=2)
        assert handle._run.get().on(handle.stack).store.nbytes == 2 * 9 * 8 * 4


# Hosts that call their blocks otherwise.


class Picky(torch.nn.Module):
    """Leaves out blocks, or calls one twice, as told."""

    def __init__(self, block):
        super().__init__()
        self.blocks = torch.nn.ModuleList([block() for _ in range(4)])
        self.calls = 0

    def forward(self, x, order=(0, 1, 2, 3)):
        self.calls += 1
        for index in order:
            x = self.blocks[index](x)
        return x


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 3), (0, 1, 1, 2, 3), (0, 2, 1, 3), (0, 1, 2, 3, 3), ()])
def test_an_order_that_cannot_be_bypassed_computes_and_is_never_tried_again(kit, order):
    torch.manual_seed(0)
    net = Picky(kit.Block)
    x = kit.noise(1, (1, 4, 8))
    plain = net(x, order)
    net.calls = 0
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle, handle.run():
        net(x)
        outputs = [net(x, order), net(x, order), net(x)]
    for output in outputs[:2]:
        assert torch.equal(output, plain)
    if not order:  # no block was asked: something else answered, and once is enough
        assert decisions(handle) == [Decision.SCHEDULED, Decision.ANSWERED, Decision.ANSWERED, Decision.UNSUPPORTED]
        assert net.calls == 4
        return
    assert decisions(handle) == [Decision.SCHEDULED, *[Decision.UNSUPPORTED] * 3]
    assert net.calls == 5, "the first skip runs the model again, the later ones are known not to work"


def test_a_block_left_out_on_every_call_is_fine(kit):
    torch.manual_seed(0)
    net = Picky(kit.Block)
    x = kit.noise(1, (1, 4, 8))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        first, again = net(x, (0, 1, 3)), net(x, (0, 1, 3))
    assert handle.report.skipped == 1
    torch.testing.assert_close(again, first)


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_block_left_out_only_now_gets_no_residual_of_the_full_stack(kit):
    torch.manual_seed(0)
    net = Picky(kit.Block)
    x = kit.noise(1, (1, 4, 8))
    expected = net(x, (0, 1, 3))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        net(x)
        assert torch.equal(net(x, (0, 1, 3)), expected)
    assert decisions(handle)[1] is Decision.UNSUPPORTED


def test_an_unsupported_call_in_one_stream_leaves_the_others_alone(kit):
    torch.manual_seed(0)
    net = Picky(kit.Block)
    x = kit.noise(1, (1, 4, 8))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        for _ in range(2):
            for stream, order in (("cond", (0, 1, 2, 3)), ("perturbed", (0, 1, 2))):
                with handle.stream(stream):
                    net(x, order)
    assert decisions(handle)[2:] == [Decision.REUSED, Decision.UNSUPPORTED]


class Shrinking(torch.nn.Module):
    """Its blocks change the number of tokens: input and output of the stack do not fit."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.AvgPool1d(2), torch.nn.AvgPool1d(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_stack_whose_output_does_not_fit_its_input_computes(kit):
    net, x = Shrinking(), kit.noise(1, (1, 4, 8))
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        assert torch.equal(net(x), net(x))
    assert decisions(handle)[1] is Decision.UNSUPPORTED


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_gradient_checkpointing_computes(plain):
    """Its backward pass runs the blocks again, outside any call: skipping them forward would be wrong."""
    plain.module.gradient_checkpointing = True
    with follow(plain, 1, 0) as handle, torch.enable_grad(), handle.run():
        plain()
        plain()
    assert decisions(handle)[1] is Decision.UNSUPPORTED


# The whole model as the block.


def unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.mark.parametrize("return_dict", [True, False])
def test_whole_model_of_a_unet(kit, return_dict):
    pytest.importorskip("diffusers")
    model, x = unet(), kit.noise(1, (1, 2, 8, 8))
    calls = []
    hook = model.conv_in.register_forward_hook(lambda *_: calls.append(1))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), scope="model") as handle, handle.run():
        first, again = model(x, 1, return_dict=return_dict), model(x, 1, return_dict=return_dict)
    hook.remove()
    assert len(calls) == 1
    assert type(again) is type(first)
    torch.testing.assert_close(again[0], first[0], rtol=1e-5, atol=1e-6)
    if return_dict:
        torch.testing.assert_close(again.sample, first.sample, rtol=1e-5, atol=1e-6)
    assert "forward" not in model.__dict__


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_whole_model_asked_for_another_form_of_result(kit):
    """A residual is there, but no such result was seen: it computes rather than answer in the wrong form."""
    pytest.importorskip("diffusers")
    model, x = unet(), kit.noise(1, (1, 2, 8, 8))
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), scope="model") as handle, handle.run():
        model(x, 1, return_dict=True)
        assert isinstance(model(x, 1, return_dict=False), tuple)
    assert decisions(handle)[1] is Decision.MISMATCH


def test_whole_model_with_another_output_shape_gives_what_it_gave():
    model = torch.nn.Linear(8, 4)
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0]), scope="model") as handle, handle.run():
        first = model(torch.ones(2, 8))
        assert torch.equal(model(torch.zeros(2, 8)), first)
    assert decisions(handle)[1] is Decision.REUSED
