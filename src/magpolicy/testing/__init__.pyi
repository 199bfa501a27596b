# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from . import strategies
from ._adapter_kit import AdapterRig, RigStop, check_adapter
from ._policy_kit import check_policy

__all__ = ["AdapterRig", "RigStop", "check_adapter", "check_policy", "strategies"]
