"""An adapter for a host of your own, with public names only. The host samples with a transformer of diffusers, in its own loop.

``magpolicy.manager().register(host_adapter)`` registers it; docs/how-to/write-a-plugin.md explains it.
"""

import magpolicy
import torch
from magpolicy_torch.adapter import Attached, CallInterceptor, HostModel, HostRun, Scoped, stack_for, versions

# --- The host ---------------------------------------------------------------------------------------------------------


class Euler:
    """A sampler: the engine asks it for the first latents, the timesteps, and the latents after each step."""

    def __init__(self, steps, *, size=8, guidance=2.0, seed=0):
        self.steps, self.size, self.guidance, self.seed = steps, size, guidance, seed
        self.sigmas = [1 - step / steps for step in range(steps)] + [0.0]

    def begin(self):
        return torch.randn(1, 4, self.size, self.size, generator=torch.Generator().manual_seed(self.seed))

    def time(self, step):
        return torch.tensor([1000 * self.sigmas[step]]).long()

    def step(self, latents, step, outputs):
        guided = outputs["uncond"] + self.guidance * (outputs["cond"] - outputs["uncond"])
        return latents + (self.sigmas[step + 1] - self.sigmas[step]) * guided


class Engine:
    """Samples with ``transformer``, a ``DiTTransformer2DModel``, under conditions that are class labels."""

    def __init__(self, transformer):
        self.transformer = transformer

    @torch.no_grad()
    def sample(self, sampler, labels, *, batched=False):
        latents = sampler.begin()
        calls = [dict(labels)] if batched else [{name: label} for name, label in labels.items()]
        for step in range(sampler.steps):
            outputs = {}
            for conditions in calls:
                outputs.update(self.denoise(latents, sampler.time(step), conditions))
            latents = sampler.step(latents, step, outputs)
        return latents

    def denoise(self, latents, time, labels):
        count = len(labels)
        inputs = {"timestep": time.repeat(count), "class_labels": torch.tensor([*labels.values()])}
        (output,) = self.transformer(torch.cat([latents] * count), **inputs, return_dict=False)
        return dict(zip(labels, output.chunk(count), strict=True))


# --- The adapter ------------------------------------------------------------------------------------------------------


class EngineHandle(Attached):
    """What ``magpolicy.attach(engine, ...)`` returns. One call of ``engine.sample`` is one run; a condition is a stream."""

    def __init__(self, engine, request):
        super().__init__(request)
        owner = engine.sample.__self__  # the engine, or the handle that is on it, whose place this one takes
        before, self.engine = owner if isinstance(owner, EngineHandle) else None, engine
        self.stack = stack_for(engine.transformer, request, held=before and before.stack)  # raises before anything is patched
        self.model = HostModel(engine.transformer, self.stack)
        self.current, self.streams, self.last = Scoped("run"), Scoped("streams"), None  # a thread sees its own run only
        calls = CallInterceptor(engine.transformer, self.call)
        blocks, front = (self.stack.claim, self.stack.release), (calls.install, calls.remove)
        self.install(blocks, front, (self.patch, self.restore), replaces=before)

    def patch(self):
        self.engine.sample, self.engine.denoise = self.sample, self.denoise

    def restore(self):
        del self.engine.sample, self.engine.denoise

    def sample(self, sampler, labels, **options):
        """In place of ``engine.sample``: the run begins and ends here."""
        with self.under_way():
            run = HostRun(self.request, self.request.session(sampler.steps), noise=sampler.sigmas)
            try:
                with self.current.set(run):
                    return type(self.engine).sample(self.engine, sampler, labels, **options)
            except BaseException:
                run.stop()
                raise
            finally:
                run.end()
                self.last = run

    def denoise(self, latents, time, labels):
        """In place of ``engine.denoise``: the streams of the call are known here."""
        with self.streams.set(tuple(labels)):
            return type(self.engine).denoise(self.engine, latents, time, labels)

    def call(self, call, args, kwargs):
        """In place of each call of the transformer: it computes or skips."""
        run = self.current.get()
        return call(*args, **kwargs) if run is None else run.evaluate(self.model, self.streams.get(), call, args, kwargs)

    @property
    def scope(self):
        return self.stack.scope

    @property
    def runs(self):
        run = self.current.get() or self.last
        return () if run is None else (run,)

    def provenance(self):
        return {"model": type(self.engine.transformer).__name__, "versions": versions()}


@magpolicy.hookimpl
def attach(target, request):
    """Attach to an engine, in the place of the handle that is on it; anything else belongs to another adapter."""
    return EngineHandle(target, request) if isinstance(target, Engine) else None
