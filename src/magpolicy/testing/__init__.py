"""For anyone who writes a policy or an adapter: Hypothesis strategies and the conformance kit.

Needs Hypothesis (the ``test`` extra) for the strategies and :func:`check_policy`; :func:`check_adapter` needs nothing more than
the core.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
