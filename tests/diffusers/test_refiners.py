"""Models that refine the picture's tokens before the stack: these blocks can be told to belong to it."""

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
from zoo import CASES  # noqa: E402
from zoo._case import Draw  # noqa: E402


@pytest.mark.parametrize("name", ["Lumina2Transformer2DModel", "ZImageTransformer2DModel"])
def test_the_refiner_is_skipped_with_the_stack_where_it_is_told(name):
    case, ran = CASES[name], []
    model = case.make()
    for block in (*model.noise_refiner, *model.layers):
        block.register_forward_hook(lambda block, *_: ran.append(block))
    every = [*model.noise_refiner, *model.layers]
    blocks = "noise_refiner,layers"
    schedule = magpolicy.Schedule.from_mask([1, 0, 1, 0, 0])
    with torch.no_grad():
        bare = case.call(model, Draw(level=0.7))[0]
        with magpolicy.attach(model, blocks=blocks, schedule=schedule) as handle, handle.run(steps=5):
            for level, computes in zip([0.9, 0.8, 0.7, 0.69999, 0.6], schedule.mask, strict=True):
                ran.clear()
                result = case.call(model, Draw(level=level))[0]
                assert ran == (every if computes else [])
                if level == 0.7:
                    assert torch.equal(result, bare)
                elif (
                    level == 0.69999
                ):  # of the same picture, as good as at the same level: the residual is just what was left out
                    assert torch.allclose(result, bare, rtol=1e-3, atol=1e-3 * float(bare.abs().max()))
