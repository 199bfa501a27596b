"""Of a kept calibration the report says if it is of other weights, and why it was passed over."""

import pytest

import magpolicy
from magpolicy import attach

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

STEPS = 10


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + 0.1 * torch.tanh(self.linear(x))


class Model(torch.nn.Module):
    def __init__(self, depth=3, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(depth))
        self.eval()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def run(model, **settings):
    with torch.no_grad(), attach(model, **settings) as handle, handle.run(steps=STEPS):
        x = torch.ones(1, 4, 8)
        for _ in range(STEPS):
            with handle.stream("cond"):
                x = x - 0.1 * model(x)
    return handle


@pytest.fixture
def kept():
    """The name of a kept calibration of ``Model()``."""
    return magpolicy.keep(run(Model(), calibrate=True).calibration).stem


def test_the_same_model_is_planned_from_it_and_nothing_is_remarked(kept):
    report = run(Model(), speedup=2.0).report
    assert report.source.startswith("a plan from calibration 'Model-")
    assert report.problems == ()


def test_other_weights_are_planned_from_it_and_that_is_said(kept):
    report = run(Model(seed=1), speedup=2.0).report
    assert report.source.startswith("a plan from calibration 'Model-")
    (said,) = report.problems
    assert said.endswith("was measured with other weights of the same class and config")


def test_another_model_of_the_class_is_told_why_it_was_passed_over_and_what_uses_it(kept):
    report = run(Model(depth=5), speedup=2.0, learn=False).report
    assert "general prior" in report.source
    (said,) = report.problems
    name = said.split("preset='")[1].split("'")[0]
    assert said.startswith(f"your calibration '{name}' is of another Model")
    used = run(Model(depth=5), speedup=2.0, preset=name).report
    assert used.source.startswith(f"a plan from calibration '{name}'")
    assert used.problems == ("the calibration is of the block stack 3 Block, this run has 5 Block",), "not that of the choice"


def test_a_model_of_another_class_hears_nothing_of_it(kept):
    class Another(Model):
        pass

    assert run(Another(), speedup=2.0, learn=False).report.problems == ()


def test_where_the_rule_decides_the_report_says_that_the_calibration_does_not(kept):
    from magpolicy.adapter import ModelIdentity, remarks_on_choice

    own = magpolicy.preset(kept)
    identity = ModelIdentity.of(own.calibration)
    (said,) = remarks_on_choice(identity, None, by_rule=True)
    assert said.startswith(f"your calibration {kept!r} is of this model, and not used: the rule goes by published settings;")
    assert said.endswith("speedup=2 plans from it")
    assert remarks_on_choice(identity, own.calibration, by_rule=True) == ()


def test_the_rule_and_a_given_calibration_say_nothing_of_the_choice(kept):
    calibration = run(Model(seed=1), calibrate=True).calibration
    assert run(Model(), calibration=calibration, speedup=2.0).report.problems == ()
    ratios = [1.0] + [0.99] * (STEPS - 1)
    assert run(Model(depth=5), ratios=ratios, threshold=0.1, max_skips=2, retention=0.2).report.problems == ()
