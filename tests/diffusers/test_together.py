"""Beside everything else that people do to pipelines: adapters, offloading, casting, copies, threads, other caches."""

import copy
import pickle
import threading

import pytest

import magpolicy
from magpolicy import AdapterError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

from pipes import PIPES  # noqa: E402

from reference import ByHand  # noqa: E402
from zoo import CASES  # noqa: E402
from zoo._case import Draw  # noqa: E402

pytestmark = pytest.mark.sampled

MASK = (1, 1, 0, 1, 0, 0)
FLUX, WAN = PIPES["FluxPipeline"], PIPES["WanPipeline"]
WAY = {FLUX.cls: "true cfg", WAN.cls: "cfg"}
SKIPPING = {"schedule": Schedule.from_mask(MASK)}


# What is done to a pipeline: (pipe, a folder for files) -> nothing.


def lora(pipe, folder):
    torch.manual_seed(1)
    names = ["to_q", "to_k"]
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    pipe.transformer.set_adapters(["default"], [0.7])


def model_offload(pipe, folder):
    """A pipeline takes its hooks off at the end of a call, and puts them on again."""
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe, folder):
    """What enable_sequential_cpu_offload installs; the pipeline's method itself wants an accelerator."""
    accelerate.cpu_offload(pipe.transformer, execution_device="cpu")


def device_map(pipe, folder):
    accelerate.dispatch_model(pipe.transformer, {"": "cpu"}, main_device="cpu", force_hooks=True)


def split_device_map(pipe, folder):
    inner = pipe.transformer
    names = [*dict(inner.named_children()), *dict(inner.named_parameters(recurse=False))]
    places = {name: "disk" if name.endswith("blocks") else "cpu" for name in names}
    accelerate.dispatch_model(inner, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def blocks_in_groups(pipe, folder):
    pipe.transformer.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)


def blocks_on_disk(pipe, folder):
    where = {"offload_to_disk_path": str(folder)}
    pipe.transformer.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1, **where)


def leaves_in_groups(pipe, folder):
    pipe.transformer.enable_group_offload("cpu", offload_type="leaf_level")


def layerwise_casting(pipe, folder):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def casting_to_bfloat16(pipe, folder):
    pipe.to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)


def half_precision(pipe, folder):
    pipe.to(torch.bfloat16)


def fused_projections(pipe, folder):
    pipe.transformer.fuse_qkv_projections()


THINGS = [
    lora, model_offload, sequential_offload, device_map, split_device_map, blocks_in_groups, blocks_on_disk, leaves_in_groups,
    layerwise_casting, casting_to_bfloat16, half_precision, fused_projections,
]  # fmt: skip
# Without magpolicy these fail on Flux too: sequential offloading without an accelerator, half precision with the case's float32
# embeddings.
NOT_FLUX = (sequential_offload, casting_to_bfloat16, half_precision)
PAIRS = [(case, thing) for case in (FLUX, WAN) for thing in THINGS if case is WAN or thing not in NOT_FLUX]


@pytest.mark.parametrize("first", [True, False], ids=["before attaching", "after attaching"])
@pytest.mark.parametrize(("case", "thing"), [pytest.param(c, t, id=f"{c.cls}-{t.__name__}") for c, t in PAIRS])
def test_together_with(case, thing, first, tmp_path):
    def done():
        pipe, folder = case.make(), tmp_path / str(len(list(tmp_path.iterdir())))  # offloading to disk shares no folder
        folder.mkdir()
        return pipe, lambda: thing(pipe, folder)

    way = WAY[case.cls]
    by_hand, do = done()
    do()
    with ByHand(case, by_hand, way, 6, MASK):
        expected = case.run(by_hand, way, 6)
    pipe, do = done()
    if first:
        do()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        if not first:
            do()
        for _ in range(2):
            assert torch.equal(case.run(pipe, way, 6), expected)
            assert handle.report.strip == "██·█··"


def test_what_is_put_in_between_two_runs_counts_from_then_on():
    """An adapter on layers outside of the blocks too, and its removal."""
    names = ["proj_out", "x_embedder", "to_q"]

    def adapt(pipe):
        torch.manual_seed(1)
        pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))

    def by_hand(*done):
        pipe = FLUX.make()
        for do in done:
            do(pipe)
        with ByHand(FLUX, pipe, "true cfg", 6, MASK):
            return FLUX.run(pipe, "true cfg", 6)

    plain, adapted, pipe = by_hand(), by_hand(adapt), FLUX.make()
    assert not torch.equal(plain, adapted)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        assert torch.equal(FLUX.run(pipe, "true cfg", 6), plain)
        adapt(pipe)
        assert torch.equal(FLUX.run(pipe, "true cfg", 6), adapted)
        pipe.transformer.delete_adapters("default")
        assert torch.equal(FLUX.run(pipe, "true cfg", 6), plain)
        assert handle.report.strip == "██·█··"


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_blocks_that_were_replaced_run():
    """The stack is no longer the one that was attached to: the new block runs, and nothing is skipped."""
    pipe, other = FLUX.make(), FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        FLUX.run(pipe, "true cfg", 6)
        block = copy.deepcopy(other.transformer.transformer_blocks[0])
        with torch.no_grad():
            block.attn.to_q.weight.mul_(0.5)
        for each in (pipe, other):
            each.transformer.transformer_blocks[0] = copy.deepcopy(block)
        expected = FLUX.run(other, "true cfg", 6)
        assert torch.equal(FLUX.run(pipe, "true cfg", 6), expected)
        assert handle.report.skipped == 0


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_is_not_attached_and_the_original_is(make_copy):
    case, model = CASES["FluxTransformer2DModel"], CASES["FluxTransformer2DModel"].make()
    plain = case.call(model, Draw())
    with magpolicy.attach(model, **SKIPPING) as handle:
        other = make_copy(model)
        for block in other.transformer_blocks:
            for parameter in block.parameters():
                parameter.zero_()
        assert not torch.equal(case.call(other, Draw())[0], plain[0]), "the copy runs its own blocks"
        with handle.run():
            assert torch.equal(case.call(model, Draw())[0], plain[0])
        assert handle.report.computed == 1


def test_saving_an_attached_pipeline(tmp_path):
    pipe = FLUX.make()
    keys = set(pipe.transformer.state_dict())
    with magpolicy.attach(pipe, **SKIPPING):
        copied = copy.deepcopy(pipe)
        assert set(pipe.transformer.state_dict()) == keys
        pipe.transformer.save_pretrained(tmp_path)
    again = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path)
    for key, value in pipe.transformer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert torch.equal(FLUX.run(copied, "distilled", 4), FLUX.run(FLUX.make(), "distilled", 4))


def test_threads_do_not_see_each_other():
    """Each with a pipeline and a scheduler of its own, around one attached transformer."""
    expected = {}
    for seed in range(3):
        pipe = FLUX.make()
        with magpolicy.attach(pipe, **SKIPPING):
            expected[seed] = FLUX.run(pipe, "true cfg", 6, seed=seed)
    model, found = FLUX.make().transformer, {}
    with magpolicy.attach(model, **SKIPPING):

        def work(seed):
            pipe = FLUX.make()
            pipe.transformer = model
            found[seed] = FLUX.run(pipe, "true cfg", 6, generator=torch.Generator().manual_seed(seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, result in expected.items():
        assert torch.equal(found[seed], result)


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_another_cache_is_one_clear_error_and_nothing_is_patched():
    pipe = FLUX.make()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    before = {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()}
    with pytest.raises(AdapterError, match="FirstBlockCacheConfig"):
        magpolicy.attach(pipe, **SKIPPING)
    assert {name: sorted(vars(module)) for name, module in pipe.transformer.named_modules()} == before
    pipe.transformer.disable_cache()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.0))
        FLUX.run(pipe, "true cfg", 6)
        assert handle.report.skipped == 0, "two caches never skip on top of each other"


def test_the_class_is_left_as_found_whatever_the_order_of_detaching():
    call = diffusers.FluxPipeline.__call__
    one, two = FLUX.make(), FLUX.make()
    handles = [magpolicy.attach(pipe, **SKIPPING) for pipe in (one, two)]
    handles[0].detach()
    FLUX.run(two, "distilled", 6)
    assert handles[1].report.skipped == 3
    handles[1].detach()
    assert diffusers.FluxPipeline.__call__ is call
    assert "forward" not in vars(one.transformer)
    assert "cache_context" not in vars(one.transformer)


def test_a_replaced_transformer_is_said():
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING):
        pipe.transformer = FLUX.make().transformer
        with pytest.warns(UserWarning, match="attach again"):
            FLUX.run(pipe, "distilled", 6)


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_gradient_checkpointing_computes():
    case, model = CASES["FluxTransformer2DModel"], CASES["FluxTransformer2DModel"].make()
    model.enable_gradient_checkpointing()
    model.train()
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        for _ in range(2):
            with torch.enable_grad():
                model(**case.inputs(Draw(level=0.5)) | {"timestep": torch.rand(1)})
    assert handle.report.reasons == {"scheduled": 1, "unsupported": 1}


def test_a_unet_is_skipped_as_a_whole():
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    ).eval()  # fmt: skip
    x, y = torch.randn(2, 1, 4, 8, 8)
    with torch.no_grad(), magpolicy.attach(unet, schedule=Schedule.from_mask([1, 0])) as handle, handle.run():
        computed, skipped = unet(x, 900).sample, unet(y, 500).sample
        assert torch.equal(skipped, y + (computed - x))
    assert (handle.scope, handle.report.scope) == ("model", "model")


@pytest.mark.parametrize("target", ["a pipeline", diffusers.DDIMScheduler(), 5], ids=lambda t: type(t).__name__)
def test_what_cannot_be_attached_to(target):
    with pytest.raises(AdapterError, match="target="):
        magpolicy.attach(target, **SKIPPING)


@pytest.mark.parametrize("when", ["before attaching", "after attaching", "in place"])
@pytest.mark.parametrize("case", [FLUX, WAN], ids=lambda c: c.cls)
def test_a_compiled_transformer_stays_compiled(case, when):
    from torch._dynamo.testing import CompileCounterWithBackend

    pipe = case.make()
    with magpolicy.attach(pipe, **SKIPPING):
        expected = case.run(pipe, WAY[case.cls], 6)
    torch.compiler.reset()
    pipe, counter = case.make(), CompileCounterWithBackend("eager")
    options = {"fullgraph": True, "backend": counter}
    if when == "before attaching":
        pipe.transformer = torch.compile(pipe.transformer, **options)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        if when == "after attaching":
            pipe.transformer = torch.compile(pipe.transformer, **options)
        elif when == "in place":
            magpolicy.compile(pipe, region="model", **options)
        for _ in range(2):
            torch.testing.assert_close(case.run(pipe, WAY[case.cls], 6), expected, rtol=1e-5, atol=1e-6)
            assert handle.report.strip == "██·█··"
    torch.compiler.reset()
    assert counter.frame_count == 2, "one graph computes, one skips"


@pytest.mark.parametrize("compiled", [False, True])
def test_an_attached_pipeline_becomes_another_of_its_kind(compiled):
    """diffusers looks at the exact type of each component."""
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING):
        if compiled:
            pipe.transformer.compile(backend="eager")
        other = diffusers.FluxImg2ImgPipeline.from_pipe(pipe)
        assert other.transformer is pipe.transformer
