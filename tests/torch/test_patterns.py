"""Blocks that take and return hidden states and text in every way there is: which is which is told, or said not to be."""

import itertools

import pytest
from attrs import frozen

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

PATTERNS = [
    (count, takes, gives, kind, named, same)
    for count, takes, gives, kind, named, same in itertools.product(
        (1, 2, 3), ("ht", "th"), ("ht", "th"), (tuple, list, dict, "alone"), (False, True), (False, True)
    )
    if kind != "alone" or gives == "ht"
]


class Block(torch.nn.Module):
    """Both streams are added to; which comes first, going in and coming out, is ``gives``'s and the subclass's."""

    def __init__(self, gives, kind, residual=True):
        super().__init__()
        self.image, self.text = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.gives, self.kind, self.residual = gives, kind, residual

    def result(self, hidden, text):
        mixed = 0.3 * self.image(hidden).tanh() + 0.1 * text.mean(1, keepdim=True)
        told = 0.3 * self.text(text).tanh()
        hidden, text = (hidden + mixed, text + told) if self.residual else (3 * mixed - text.flip(1), 3 * told - hidden.flip(1))
        if self.kind == "alone":
            return hidden
        if self.kind is dict:
            both = {"hidden": hidden, "text": text}
            return both if self.gives == "ht" else dict(reversed(both.items()))
        return self.kind((hidden, text) if self.gives == "ht" else (text, hidden))


class HiddenFirst(Block):
    def forward(self, hidden_states, encoder_hidden_states):
        return self.result(hidden_states, encoder_hidden_states)


class TextFirst(Block):
    def forward(self, encoder_hidden_states, hidden_states):
        return self.result(hidden_states, encoder_hidden_states)


class Net(torch.nn.Module):
    def __init__(self, count, takes, gives, kind, named, residual=True):
        super().__init__()
        cls = HiddenFirst if takes == "ht" else TextFirst
        self.blocks = torch.nn.ModuleList(cls(gives, kind, residual) for _ in range(count))
        self.takes, self.gives, self.kind, self.named = takes, gives, kind, named

    def stack(self, hidden, text):
        for block in self.blocks:
            if self.named:
                result = block(hidden_states=hidden, encoder_hidden_states=text)
            else:
                result = block(hidden, text) if self.takes == "ht" else block(text, hidden)
            if self.kind == "alone":
                hidden = result
            elif self.kind is dict:
                hidden, text = result["hidden"], result["text"]
            else:
                hidden, text = result if self.gives == "ht" else result[::-1]
        return hidden, text

    def forward(self, x, text):
        return 2 * self.stack(x, text)[0] + 1


@frozen
class Ran:
    """What three calls returned, a computed one and two that were to be skipped, and the report."""

    results: list
    report: object


def ran(net, inputs, text):
    with torch.no_grad(), magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle:
        with handle.run(steps=3):
            results = [net(x, text) for x in inputs]
        return Ran(results, handle.report)


@pytest.mark.parametrize(("count", "takes", "gives", "kind", "named", "same"), PATTERNS)
def test_computed_is_as_without_and_skipped_adds_the_residual(count, takes, gives, kind, named, same):
    torch.manual_seed(0)
    net = Net(count, takes, gives, kind, named)
    inputs, text = torch.randn(3, 1, 6, 8), torch.randn(1, 6 if same else 4, 8)
    found = ran(net, inputs, text)
    assert found.report.skipped == 2
    with torch.no_grad():
        assert torch.equal(found.results[0], net(inputs[0], text))
        residual = net.stack(inputs[0], text)[0] - inputs[0]
    for x, result in zip(inputs[1:], found.results[1:], strict=True):
        assert torch.equal(result, 2 * (x + residual) + 1)


@pytest.mark.filterwarnings("ignore:nothing was skipped")
@pytest.mark.parametrize("gives", ["ht", "th"])
def test_what_nothing_tells_computes_and_says_what_would(gives):
    """One block that adds to nothing and mixes both streams."""
    torch.manual_seed(0)
    net = Net(1, "ht", gives, tuple, False, residual=False)
    inputs, text = torch.randn(3, 1, 6, 8), torch.randn(1, 6, 8)
    found = ran(net, inputs, text)
    with torch.no_grad():
        assert all(torch.equal(result, net(x, text)) for x, result in zip(inputs, found.results, strict=True))
    assert found.report.skipped == 0
    assert any("a Layout with result= and text_result=" in words for words in found.report.problems)
