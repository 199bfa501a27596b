"""Beside what else people do to pipelines: adapters, offloading, casting, copies, threads, other caches, other kinds.

Each is compared with the same thing done without magpolicy: bit for bit where nothing is skipped, and where something is, with
the same steps skipped by hand.
"""

import itertools

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

from pipes import PIPES  # noqa: E402

from reference import ByHand  # noqa: E402

STEPS, MASK = 6, (True, True, False, True, False, False)
SCHEDULE = Schedule.from_mask(MASK)
NEVER = {"ratios": [1.0] * STEPS, "threshold": 0.0, "max_skips": 0, "retention": 0.0}
FLUX, WAN, SD3 = PIPES["FluxPipeline"], PIPES["WanPipeline"], PIPES["StableDiffusion3Pipeline"]
# Two calls a step, told apart by the pipeline; the same, with weights on the blocks themselves; both branches in one batch.
CASES = [
    pytest.param(FLUX, "true cfg", id="Flux"),
    pytest.param(WAN, "cfg", id="Wan"),
    pytest.param(SD3, next(iter(SD3.ways)), id="SD3"),
]

# What is done to a pipeline, by name: (pipe, folder for files) -> nothing.


def lora(pipe, folder):
    torch.manual_seed(5)  # peft draws the weights; both halves, so that the adapter does something
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=names))


def model_offload(pipe, folder):
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe, folder):
    pipe.enable_sequential_cpu_offload(device="cpu")


def groups_of_blocks(pipe, folder):
    pipe.transformer.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=2)


def groups_of_leaves(pipe, folder):
    pipe.transformer.enable_group_offload("cpu", offload_type="leaf_level")


def groups_on_disk(pipe, folder):
    where = {"offload_to_disk_path": str(folder)}
    pipe.transformer.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1, **where)


def casting(pipe, folder):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def casting_to_bfloat16(pipe, folder):
    pipe.to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)


def device_map(pipe, folder):
    accelerate.dispatch_model(pipe.transformer, {"": "cpu"}, force_hooks=True)


def split_device_map(pipe, folder):
    names = [name for name, _ in pipe.transformer.named_children()] + [
        n for n, _ in pipe.transformer.named_parameters(recurse=False)
    ]
    places = {name: "disk" if name.endswith("blocks") else "cpu" for name in names}
    accelerate.dispatch_model(pipe.transformer, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def half_precision(pipe, folder):
    pipe.to(torch.bfloat16)


def fused_projections(pipe, folder):
    pipe.transformer.fuse_qkv_projections()


DONE = [
    lora, model_offload, sequential_offload, groups_of_blocks, groups_of_leaves, groups_on_disk, casting, casting_to_bfloat16,
    device_map, split_device_map, half_precision, fused_projections,
]  # fmt: skip


def masks(handle):
    """Where each stream computed."""
    return set(handle.report.schedule.masks)


def plainly(case, way, folder, *done):
    pipe = case.make()
    for do in done:
        do(pipe, folder)
    return case.run(pipe, way, STEPS)


def by_hand(case, way, folder, *done):
    pipe = case.make()
    for do in done:
        do(pipe, folder)
    with ByHand(case, pipe, way, STEPS, MASK):
        return case.run(pipe, way, STEPS)


@pytest.fixture
def folders(tmp_path):
    """A new folder at each call: offloading to disk does not share one."""

    counted = itertools.count()

    def new():
        folder = tmp_path / str(next(counted))
        folder.mkdir()
        return folder

    return new


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("do", DONE, ids=lambda do: do.__name__)
@pytest.mark.parametrize(("case", "way"), CASES)
def test_what_is_done_to_a_pipeline_does_not_matter(case, way, do, when, folders):
    """Also at the second call: pipelines take offloading off and put it on again after each."""
    plain, expected = plainly(case, way, folders(), do), by_hand(case, way, folders(), do)
    assert not torch.equal(plain, expected), "nothing is shown"
    for settings, result in ((NEVER, plain), ({"schedule": SCHEDULE}, expected)):
        pipe = case.make()
        if when == "before":
            do(pipe, folders())
        with magpolicy.attach(pipe, **settings) as handle:
            if when == "after":
                do(pipe, folders())
            for _ in range(2):
                assert torch.equal(case.run(pipe, way, STEPS), result)
                assert masks(handle) == {MASK if "schedule" in settings else (True,) * STEPS}
        assert torch.equal(case.run(pipe, way, STEPS), plain)
