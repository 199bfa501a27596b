"""The way to somebody's model: settings are checked here, and an adapter does the rest.

``attach`` and ``compile`` check their arguments and make a request of them; ``_dispatch`` hands the target and the request
to the first installed adapter that knows the target. ``attached`` and ``detach`` ask all of them what is on it. No framework
and no host is imported here.

Above ``run/``. Only the public names lead here; adapters see requests.
"""
