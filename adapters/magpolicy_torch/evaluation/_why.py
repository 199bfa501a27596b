"""Why calls compute though they could have skipped: each reason in words that a user reads in reports and warnings."""

from __future__ import annotations

import enum


class Why(enum.Enum):
    """A reason; :meth:`says` is its sentence. A test produces each of them."""

    __module__ = "magpolicy_torch.adapter"

    # The first call of a kind shows that its blocks cannot be followed: after the model's name and "computes:".
    NO_TENSOR = "{block} was given no tensor where its hidden states should be"
    FEW_TOKENS = "{block} was given fewer tokens than its layout describes as text"
    WHICH_TOKENS = "which tokens of {block} are the image's cannot be told; try a Layout with prefix="
    STRANGE_RESULT = "{block} returned a {kind} that a skip cannot build"
    OTHER_STATES = "{block} returned something other than the states it was given, in their shapes{told}"
    OTHER_IMAGE = "the stack returned image tokens of another shape, or on another device, than it was given"
    OTHER_SECOND = "the stack returned a second stream of another shape than it was given"
    ORDER = "the model calls its blocks in another order than they are listed, or one of them twice"
    LEFT_OUT = (
        "the model did not call the last of its blocks, or none: they were replaced, are not those it runs, or another cache "
        "(such as cache-dit) stands in for them"
    )

    # There is no place for parts in the model as it is now.
    TWICE = "one of its blocks stands twice among them, and its forward is wrapped; attach with scope='model'"
    REPLACED = "it holds other blocks than when it was attached to; attach again"

    # A call does not go as the one did that was observed, or a skip as the computed call did.
    NOT_AS_OBSERVED = "its blocks were not run as in the call that was observed"
    OTHER_BLOCKS = "other blocks ran when the residual was computed"
    OTHERWISE = "on a skip it called its blocks otherwise than when it computed"
    BESIDE = "its blocks return something beside their states, which a skip cannot make up, and it uses that"

    # Something around the call keeps it from being skipped.
    ANSWERED = (
        "something else answered in the place of the blocks, such as another cache: two caches would go on from one another's "
        "results, so this one computes the rest of the run; use one of them"
    )
    OTHER_CACHE = "another cache, {cache}, is on {model}: its calls are left to that, and ours skips none of them"
    TRANSFORMED = "called inside of a torch.func transform (vmap, grad, ...), where nothing can be kept: such calls compute"
    CHECKPOINTING = "with gradient checkpointing the backward pass runs the blocks again, so every step computes"
    GRADIENTS = "gradients of what it is given are wanted, and a skip has none of the blocks, so every step computes"
    ANOTHER_PROMPT = (
        "the prompt of {stream}, or what else tells its branch, became another one during the run; the step after that computes"
    )
    TOO_MANY = "more calls come at a step than can be told apart, so all compute"
    TOO_LONG = (
        "{model} was evaluated more often than the run's {steps} steps; the rest computes. steps= counts evaluations: "
        "second-order samplers, such as Heun's, make two a step"
    )
    TOO_LONG_UNNAMED = (
        "{model} was evaluated more often than the run's {steps} steps; the rest computes. If guidance calls it twice a step, "
        'put each call into a with block of its own, \'with handle.stream("cond"):\' and "uncond"; steps= counts evaluations '
        "of each, and second-order samplers, such as Heun's, make two a step"
    )

    # Nothing tells which run the call belongs to: there is no report, and a warning says it.
    NO_LENGTH = "nothing says how long the run is: give attach(..., steps=28), or use 'with handle.run(steps=28):'"
    NO_TIMESTEP = "it is given no timestep, so nothing tells the step; use 'with handle.run(steps=28):'"
    NO_LIST = "its scheduler lists no timesteps, and {then}"
    NO_RUN = "{model} was called outside a run, so nothing is skipped; put the loop in 'with handle.run(steps=...):'"
    TRAINS = (
        "{model} is in training mode, and gradients are on: blocks that are skipped would get none, so nothing is skipped. "
        "To sample, call it under torch.no_grad(), or after model.eval()"
    )

    def says(self, **fields: object) -> str:
        """The sentence, with what it is about filled in."""
        return str(self.value).format(**fields)
