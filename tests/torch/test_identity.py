"""The identity of a module: the same however it is wrapped or placed, another for other weights."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
nn = torch.nn

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from magpolicy_torch.adapter import identity_of  # noqa: E402

SIZE = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 16,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6)}  # fmt: skip


@pytest.fixture
def flux():
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**SIZE)


def test_it_names_class_config_and_weights(flux):
    found = identity_of(flux, repo="org/flux", part="transformer")
    assert (found.model, found.repo, found.part) == ("FluxTransformer2DModel", "org/flux", "transformer")
    assert all((found.config, found.weights))
    assert identity_of(diffusers.FluxTransformer2DModel(**SIZE)).config == found.config
    assert identity_of(diffusers.FluxTransformer2DModel(**SIZE | {"num_layers": 1})).config != found.config
    assert identity_of(flux, config={"layers": 3}).config == identity_of(nn.Linear(1, 1), config={"layers": 3}).config
    flux.register_to_config(_name_or_path="/elsewhere")
    assert identity_of(flux).config == found.config


def test_wrappers_and_compiled_blocks_change_nothing(flux):
    plain = identity_of(flux)
    assert identity_of(torch.compile(flux)) == plain
    flux.transformer_blocks[0] = torch.compile(flux.transformer_blocks[0])
    flux.transformer_blocks[1].compile()
    assert identity_of(flux) == plain


def test_other_weights_are_another_model(flux):
    found = {identity_of(m).weights for m in (flux, diffusers.FluxTransformer2DModel(**SIZE), copy.deepcopy(flux).bfloat16())}
    assert len(found) == 3
    assert identity_of(copy.deepcopy(flux)) == identity_of(flux)


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_weights_that_are_offloaded_are_read_where_they_are(flux, way, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    plain = identity_of(flux)
    more = (tmp_path,) if way == "disk_offload" else ()
    getattr(accelerate, way)(flux, *more, execution_device="cpu")
    assert next(flux.parameters()).device.type == "meta"
    assert identity_of(flux) == plain


def test_weights_that_are_nowhere_are_not_told(flux):
    plain, gone = identity_of(flux), identity_of(flux.to("meta"))
    assert (gone.weights, gone.config) == ("", plain.config)


def test_a_lora_is_seen_on_the_model_in_it_and_by_its_scale(flux):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    plain = identity_of(flux)
    wrapped = identity_of(peft.get_peft_model(copy.deepcopy(flux), lora))
    assert (wrapped.model, wrapped.config) == (plain.model, plain.config)
    flux.add_adapter(lora)
    found = [plain.weights, wrapped.weights, identity_of(flux).weights]
    flux.set_adapters(["default"], [0.5])
    found.append(identity_of(flux).weights)
    flux.fuse_lora()
    found.append(identity_of(flux).weights)
    flux.unload_lora()
    found.append(identity_of(flux).weights)  # fused into the weights for good
    assert len(set(found)) == 6


def test_a_module_without_a_config_is_told_by_its_parameters():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

    assert identity_of(Net(3)).config == identity_of(Net(3)).config != identity_of(Net(4)).config
    empty = identity_of(nn.Identity(), config={"weights": 10**400})
    assert empty.config
    empty = identity_of(nn.Identity())
    assert (empty.config, empty.weights) == ("", "")
    assert identity_of(nn.LazyLinear(3)).weights == ""


def test_tensors_in_any_layout_and_type_are_read():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
            self.whole = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
            self.scalar = nn.Parameter(torch.tensor(3.0))
            self.empty = nn.Parameter(torch.empty(0, 3))
            self.small = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)

    one, other = Odd(), Odd()
    assert identity_of(one).weights == identity_of(other).weights != ""
    other.whole.data[0] = 9
    assert identity_of(one).weights != identity_of(other).weights


def test_a_config_that_cannot_be_read_is_no_error():
    endless = {}
    endless["self"] = endless
    assert identity_of(nn.Linear(2, 2), config=endless).config == identity_of(nn.Linear(2, 2)).config

    class Failing:
        def to_dict(self):
            raise ValueError("not now")

    model = nn.Linear(2, 2)
    model.config = Failing()
    assert identity_of(model).config == identity_of(nn.Linear(2, 2)).config


def test_a_tensor_that_cannot_be_read_is_no_error():
    class Strange(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise RuntimeError("quantized in some way of its own")

    model = nn.Linear(2, 2)
    model._parameters["weight"] = torch.ones(2, 2).as_subclass(Strange)
    assert identity_of(model, config={"a": 1}).weights == ""


def test_it_costs_the_same_for_a_model_of_any_size():
    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    def cost(layers):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        with Counted() as counted:
            identity_of(model)
        return counted.count

    assert cost(1000) <= 1.5 * cost(100) < 1000  # views of single values


def test_a_class_that_torch_derives_leaves_a_model_its_name():
    class Net(nn.Linear):
        pass

    made = Net(2, 2)
    nn.utils.parametrize.register_parametrization(made, "weight", nn.Identity())
    assert type(made) is not Net
    assert identity_of(made).model == "Net"
