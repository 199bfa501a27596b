"""Modules whose results go into the blocks alone: a skip leaves them out, and stays the same to the bit."""

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
nn = torch.nn

WIDTH = 8


class Counted(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Table(Counted):
    """Gives two tensors, in a tuple."""

    def forward(self, x):
        return super().forward(x), 2 * x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, encoder_hidden_states, table):
        return self.linear(hidden_states) + encoder_hidden_states.mean() * table[0].mean() + table[1].mean()


class Condition(nn.Module):
    """Two things in one module: the one is needed at the end, the other in the blocks alone."""

    def __init__(self):
        super().__init__()
        self.time = Counted(WIDTH, WIDTH)
        self.words = Counted(WIDTH, WIDTH)

    def forward(self, time, words):
        return self.time(time), self.words(words)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = Counted(WIDTH, WIDTH)
        self.table = Table(WIDTH, WIDTH)
        self.condition = Condition()
        self.norm, self.narrow = Counted(WIDTH, WIDTH), Counted(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = Counted(WIDTH, WIDTH)
        self.looks_later = self.gives_text = self.asks = False

    def forward(self, x, time, words):
        hidden = self.embed(x)
        table = self.table(x)
        time, words = self.condition(time, words)
        words = self.narrow(words if self.norm is None else self.norm(words))
        for block in self.blocks:
            hidden = block(hidden, words, table=table)
        if self.looks_later:
            hidden = hidden + table[0]
        if self.asks and (words > 0).any():
            hidden = 2 * hidden
        hidden = self.out(hidden) + time
        return (hidden, words) if self.gives_text else (hidden,)


SPARED = {"table", "condition.words", "norm", "narrow"}


def calls(net):
    """Which modules were called since last asked."""
    found = {name for name, module in net.named_modules() if isinstance(module, Counted) and module.calls}
    for module in net.modules():
        if isinstance(module, Counted):
            module.calls = 0
    return found


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def inputs(key):
    draw = torch.Generator().manual_seed(key)
    return [torch.randn(1, 4, WIDTH, generator=draw) for _ in range(3)]


def by_hand(net, first, then, entered=lambda net, x: net.embed(x)):
    """What a skip of ``then`` gives, the blocks computed at ``first``."""
    grabbed = {}
    hooks = [
        net.blocks[0].register_forward_pre_hook(lambda _, args: grabbed.update(before=args[0])),
        net.blocks[-1].register_forward_hook(lambda _, args, out: grabbed.update(after=out)),
    ]
    net(*first)
    for hook in hooks:
        hook.remove()
    residual = grabbed["after"] - grabbed["before"]
    hook = net.blocks[-1].register_forward_hook(lambda *_: entered(net, then[0]) + residual)
    result = net(*then)
    hook.remove()
    return result


def run(net, keys, changed=lambda step: None):
    """Computes the first, skips the others; per step what it gave, and what was called."""
    found = []
    with magpolicy.attach(net, schedule=Schedule.from_mask([1] + [0] * (len(keys) - 1))) as handle, handle.run():
        for step, key in enumerate(keys):
            changed(step)
            calls(net)
            found.append((handle.module(*inputs(key)), calls(net)))
    return found


def check(net, keys, found, **given):
    for key, (result, _) in list(zip(keys, found, strict=True))[1:]:
        expected = by_hand(net, inputs(keys[0]), inputs(key), **given)
        assert len(result) == len(expected)
        assert all(map(torch.equal, result, expected))


def test_what_the_blocks_alone_would_use_is_left_out(net):
    everything = {"embed", "out", "condition.time"} | SPARED
    found = run(net, [0, 1, 2, 3])
    assert [called for _, called in found] == [everything, everything, everything - SPARED, everything - SPARED]
    check(net, [0, 1, 2, 3], found)


@pytest.mark.parametrize("order", [(4, 6), (6, 4)], ids=["less to leave out later", "more"])
@pytest.mark.parametrize("switch", ["looks_later", "gives_text", "asks"])
def test_calls_of_another_kind_are_right_too(net, switch, order):
    """Those of six tokens go another way than those of four."""
    given = {tokens: [[torch.randn(1, tokens, WIDTH) for _ in range(3)] for _ in range(3)] for tokens in order}
    found, called = {}, {}
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle:
        for tokens in order:
            setattr(net, switch, tokens == 6)
            with handle.run():
                found[tokens] = [(calls(net), handle.module(*each))[1] for each in given[tokens]]
                called[tokens] = calls(net)
    for tokens in order:
        setattr(net, switch, tokens == 6)
        for each, result in list(zip(given[tokens], found[tokens], strict=True))[1:]:
            assert all(map(torch.equal, result, by_hand(net, given[tokens][0], each)))
    if order == (4, 6):
        assert called[4] == {"embed", "out", "condition.time"} < called[6]
    else:
        assert called[4] == called[6], "what the first kind can do without is tried alone, which is quicker"


def test_a_module_that_is_gone_is_not_looked_for(net):
    """As an IP adapter that is taken out again."""
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0])) as handle:
        for tokens in (4, 6):
            with handle.run():
                for _ in range(3):
                    calls(net)
                    handle.module(*[torch.randn(1, tokens, WIDTH) for _ in range(3)])
            assert calls(net) == {"embed", "out", "condition.time"}
            net.norm = None


def test_switches_of_training_stay_as_they_are(net):
    """Of a model in training with parts of it frozen, and of one in evaluation with a part that is not."""
    net.train()
    net.condition.words.eval()
    net.blocks[0].linear.eval()
    before = {name: module.training for name, module in net.named_modules()}
    run(net, [0, 1, 2, 3])
    assert {name: module.training for name, module in net.named_modules()} == before


def test_in_a_model_inside_of_a_model_too(net):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.inner = Counted(WIDTH, WIDTH), net

        def forward(self, x, time, words):
            return self.inner(x, time, self.before(words))

        embed = property(lambda self: self.inner.embed)
        blocks = property(lambda self: self.inner.blocks)

    wrapped = Wrapped().eval().requires_grad_(False)
    found = run(wrapped, [0, 1, 2])
    assert found[2][1] == {"inner.embed", "inner.out", "inner.condition.time"}
    check(wrapped, [0, 1, 2], found)


def test_what_is_used_after_the_blocks_stays(net):
    net.looks_later = True
    found = run(net, [0, 1, 2])
    assert "table" in found[2][1]
    assert not found[2][1] & {"condition.words", "norm", "narrow"}
    check(net, [0, 1, 2], found)


def test_asking_for_contents_is_use(net):
    net.asks = True
    found = run(net, [0, 1, 2])
    assert "narrow" in found[2][1]
    check(net, [0, 1, 2], found)


def test_asking_for_a_shape_is_none_nor_is_changing_it(net):
    class Shaping(Net):
        def forward(self, x, time, words):
            hidden = self.embed(x)
            words = (
                self.narrow(self.norm(words))
                .to(x)
                .to(x.device, non_blocking=True)
                .reshape(1, -1, WIDTH // 2)[:, : 2 * x.shape[1]]
            )
            table = self.table(x)
            hidden = hidden * (words.shape[1] + words.dim() + (words.device == x.device) + (words.dtype == x.dtype))
            for block in self.blocks:
                hidden = block(hidden, torch.cat([words, words]), table=table)
            return (self.out(hidden),)

    shaping = Shaping().eval().requires_grad_(False)
    found = run(shaping, [0, 1, 2])
    assert found[2][1] == {"embed", "out"}
    check(shaping, [0, 1, 2], found, entered=lambda net, x: net.embed(x) * (2 * x.shape[1] + 5))


class Keeping(Net):
    """Keeps what two modules give, on itself and in what it was given."""

    def forward(self, x, time, words, kept):
        hidden, table = self.embed(x), self.table(x)
        self.last_table = kept["words"] = None
        self.last_table, kept["words"] = table, self.norm(words)
        words = self.narrow(words)
        for block in self.blocks:
            hidden = block(hidden, words, table=table)
        return (self.out(hidden),)


def test_what_is_kept_for_later_stays():
    net = Keeping().eval().requires_grad_(False)
    kept = {"words": inputs(0)[2]}
    with magpolicy.attach(net, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle, handle.run():
        for key in range(4):
            x, time, words = inputs(key)
            calls(net)
            handle.module(x, time, words, kept)
            assert torch.equal(net.last_table[0], nn.Linear.forward(net.table, x))
            assert torch.equal(kept["words"], nn.Linear.forward(net.norm, words))
    assert calls(net) == {"embed", "table", "norm", "out"}


def test_what_the_model_returns_stays(net):
    net.gives_text = True
    found = run(net, [0, 1, 2])
    assert {"condition.words", "norm", "narrow"} <= found[2][1]
    assert "table" not in found[2][1]
    check(net, [0, 1, 2], found)


@pytest.mark.parametrize("switch", ["looks_later", "gives_text", "asks"])
def test_a_model_that_goes_another_way_later_is_followed(net, switch):
    """The same arguments, another attribute: what was left out is wanted after all."""
    found = run(net, [0, 1, 2, 3, 4], lambda step: setattr(net, switch, step >= 3))
    check(net, [0, 3, 4], [found[0], *found[3:]])
    setattr(net, switch, False)
    check(net, [0, 1, 2], found[:3])


def test_a_module_put_in_its_place_is_left_out_as_well(net):
    table, other = net.table, Table(WIDTH, WIDTH).requires_grad_(False)
    found = run(net, [0, 1, 2, 3, 4], lambda step: setattr(net, "table", other) if step == 3 else None)
    assert "table" not in found[4][1]
    net.table = table  # the one that the residual was computed with
    check(net, [0, 1, 2, 3, 4], found)


def test_a_module_that_gives_nothing_stays():
    class Noting(Counted):
        noted = 0

        def forward(self, x):
            type(self).noted += 1

    class Watchful(Net):
        def forward(self, x, time, words):
            self.notes(x)
            return super().forward(x, time, words)

    watchful = Watchful().eval().requires_grad_(False)
    watchful.notes = Noting(WIDTH, WIDTH)
    noted = []
    run(watchful, [0, 1, 2, 3], lambda step: noted.append(Noting.noted))
    assert Noting.noted > noted[3] > noted[2] > noted[1]
