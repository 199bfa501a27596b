"""The policy kit accepts our policy and notices ones that break a law."""

import pytest

import magpolicy
from magpolicy.testing import check_policy


def test_our_policy_conforms():
    check_policy(magpolicy.MagPolicy)


class Hasty(magpolicy.MagPolicy):
    """Skips from the start."""

    def decide(self, step=None):
        super().decide(step)
        return magpolicy.Decision.REUSED


class Forgetful(magpolicy.MagPolicy):
    """Loses its accumulators when saved."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "accumulated_error": 0.0, "skips": 0, "accumulated_ratio": 1.0})


@pytest.mark.parametrize(("broken", "law"), [(Hasty, "before something"), (Forgetful, "restoring")])
def test_a_broken_policy_is_noticed(broken, law):
    with pytest.raises(AssertionError, match=law):
        check_policy(broken)
