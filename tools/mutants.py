"""Would our own tests notice? Small mistakes are made in the code one at a time, and the tests that run the line are run.

``python tools/mutants.py session`` tries all that can be made in one module, or folder; without a name, in all of them;
``--sample 100`` so many of each, drawn at random. What survives is printed with its change. What ``mutants_excused.toml`` says
of changes nothing, and why, counts as excused; in a sample it is not tried. ``--within 20`` gives up a mistake after tests that
take 20 seconds together: it counts as survived. cosmic-ray makes the mistakes (the extra ``campaigns``).

Nothing is written to disk, and nothing is collected twice. pytest collects once; a first run notes which tests execute which
line, and how long each takes. Then each mistake gets a process of its own, forked from the one that has collected: the
function's code is exchanged in it, and the tests that execute the statement run, the quickest first, until one fails. What
stands outside of functions works by being imported: its process is forked before anything of ours is, and runs
the module's tests.
"""

from __future__ import annotations

import argparse
import ast
import gc
import math
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from importlib.machinery import SourceFileLoader
from inspect import CO_OPTIMIZED
from itertools import accumulate, pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import coverage
import hypothesis
import numpy  # noqa: F401 - so that the processes that are forked need not import it
import pytest
import tomllib
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
CORE = "src/magpolicy"
TORCH = "adapters/magpolicy_torch"
MODULES: dict[str, str] = {
    "policy": f"{CORE}/policy",
    "session": f"{CORE}/run/_session.py",
    "planned": f"{CORE}/run/_planned.py",
    "placing": f"{CORE}/run/_placing.py",
    "planning": f"{CORE}/planning",
    "gram": f"{CORE}/calibration/_gram.py",
    "schedule": f"{CORE}/schedule",
    "store": f"{TORCH}/residuals",
}
"""By name, a module, or a folder of them."""
TESTS = {CORE: ["tests/core"], TORCH: ["tests/torch"]}
"""The tests that are to notice, by package."""
NO_MISTAKES = ("RemoveDecorator", "ReplaceBinaryOperator_BitOr", "VariableInserter", "VariableReplacer")
"""Operators whose changes are none here: ``|`` stands in annotations, which are not run; classes need their decorators."""
WARNINGS = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is imported before pytest sees it
EXCUSED = Path(__file__).with_name("mutants_excused.toml")
NOTICED, SLOW, SURVIVED, EXCUSE = "noticed", "took too long", "survived", "survived, excused"
NONE, IMPORTED = "no mistake", "made by importing"
"""What becomes of a mistake; what takes too long is noticed as well."""
REPORT = os.fdopen(os.dup(1), "w")
"""What the tests print is dropped."""


class Mistake(NamedTuple):
    """One mistake: where it is, the module's text with it, and the lines that differ."""

    module: str
    line: int
    text: str
    was: str
    change: str


Change = tuple[str, Any, Any, int]
"""One change that can be made: the module, cosmic-ray's operator, the node of the module's tree, and which change there."""


def changes(module: str) -> list[Change]:
    """All that can be made in a module."""
    nodes = list(ast_nodes(get_ast(Path(module).read_text("utf-8"))))
    return [
        (module, operator, node, place)
        for operator in (get_operator(name)() for name in operator_names() if not any(part in name for part in NO_MISTAKES))
        for node in nodes
        for place, _ in enumerate(operator.mutation_positions(node))
    ]


def mistakes(modules: Iterable[str], sample: int, seed: int) -> Iterator[Mistake]:
    """All that can be made in these modules, or a sample of them."""
    every = [change for module in modules for change in changes(module)]
    for change in random.Random(seed).sample(every, min(sample, len(every))) if sample else every:
        mistake = made_by(*change)
        if sound(mistake.text):
            yield mistake


def made_by(module: str, operator: Any, node: Any, place: int) -> Mistake:
    """The mistake that a change is."""
    text = Path(module).read_text("utf-8")
    begins = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    lines = text.splitlines()
    (first, column), (last, end) = node.start_pos, node.end_pos
    alone = deepcopy(node, {id(node.parent): node.parent})  # changed is the node itself
    code = operator.mutate(alone, place).get_code(include_prefix=False).lstrip()
    changed = text[: begins[first - 1] + column] + code + text[begins[last - 1] + end :]
    before, after = first - 1, len(lines) - last
    was, now = lines[before : len(lines) - after], changed.splitlines()
    now = now[before : len(now) - after]
    while len(was) > 1 and was[-1] == now[-1]:
        del was[-1], now[-1]
    while len(was) > 1 and was[0] == now[0]:
        del was[0], now[0]
        before += 1
    return Mistake(module, before + 1, changed, *("\n".join(map(str.strip, part)) for part in (was, now)))


def sound(text: str) -> bool:
    """Whether Python compiles this without a warning; it has one for ``is`` with a literal."""
    with warnings.catch_warnings(action="error"):
        try:
            compile(text, "", "exec")
        except (SyntaxError, SyntaxWarning):
            return False
    return True


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a process of its own, with a user's folder of its own; ``None`` if that process is ended."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as home, open(os.devnull, "w") as nowhere:
        process = os.fork()
        if process == 0:
            os.environ["MAGPOLICY_HOME"] = home
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                answer = pickle.dumps((work(), ""))
            except BaseException:
                answer = pickle.dumps((None, traceback.format_exc()))
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(process, 0)
    result, failure = pickle.loads(answer) if answer else (None, "")
    if failure:
        raise RuntimeError(failure)
    return result


class Tests:
    """Makes pytest collect, and then do what it is given with the tests, which it does not run by itself."""

    def __init__(self, work: Callable[[Tests], Any]) -> None:
        self._work = work
        self._failed = False
        self.answer: Any = None
        self.error: Exception | None = None

    @classmethod
    def collected(cls, files: Iterable[str], work: Callable[[Tests], Any]) -> Any:
        tests = cls(work)
        pytest.main(
            ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-profile=mutants", *WARNINGS, *files],
            plugins=[tests],
        )
        if tests.error:
            raise tests.error
        return tests.answer

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            self.items = {item.nodeid: item for item in session.items}
            try:
                self.answer = self._work(self)
            except Exception as error:  # pytest would print it and go on
                self.error = error
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    def passes(self, name: str, following: str | None = None) -> bool:
        """Run one test."""
        self._failed = False
        item, after = self.items[name], self.items[following] if following else None
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        except (KeyboardInterrupt, pytest.exit.Exception):
            return False
        return not self._failed

    def notice(self, seconds: dict[str, float], within: float) -> str:
        """Whether one of these tests fails, or takes far longer than it does; the quickest first, for ``within`` seconds."""
        order = sorted(filter(self.items.__contains__, seconds), key=seconds.__getitem__)
        order = order[: bisect_right(list(accumulate(map(seconds.__getitem__, order))), within)]
        for name, following in pairwise([*order, None]):
            signal.setitimer(signal.ITIMER_PROF, 5 * seconds[name] + 5)  # of the processor, whatever else the machine does
            signal.setitimer(signal.ITIMER_REAL, 30 * seconds[name] + 60)  # for what waits; both end the process
            if not self.passes(name, following):
                return NOTICED
        return SURVIVED


class Survey(NamedTuple):
    """How long each test takes, and which tests execute a line of a module."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    @classmethod
    def of(cls, tests: Tests, modules: Sequence[str]) -> Survey:
        measure = coverage.Coverage(data_file=None, include=[str(ROOT / module) for module in modules], config_file=False)
        measure.start()
        seconds = {}
        for name in tests.items:
            measure.switch_context(name)
            began = time.process_time()  # whatever else the machine does
            if tests.passes(name):
                seconds[name] = time.process_time() - began
            else:
                print(f"left out, as it fails without any mistake: {name}", file=REPORT, flush=True)
        measure.stop()
        data = measure.get_data()
        return cls(seconds, {module: data.contexts_by_lineno(str(ROOT / module)) for module in modules})

    def tests_of(self, module: str, lines: Iterable[int] | None = None) -> dict[str, float]:
        """The tests that execute one of these lines, or any of the module, and how long they take."""
        of_lines = self.lines[module]
        names = {name for line in (of_lines if lines is None else lines) for name in of_lines.get(line, ())}
        return {name: self.seconds[name] for name in names if name in self.seconds}


def statement(tree: ast.Module, line: int) -> range:
    """The lines of the statement that holds a line; of a loop or a condition, those before its body; of a decorator none."""
    holding = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)]
    if not holding:
        return range(0)
    found = min(holding, key=lambda node: (node.end_lineno or 0) - node.lineno)
    body = getattr(found, "body", None)
    return range(found.lineno, max(found.lineno, body[0].lineno - 1) + 1 if body else (found.end_lineno or 0) + 1)


def differing(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The functions in which two versions of a module differ; ``None`` if they differ outside of functions."""
    if old == new:
        return []
    if old.co_flags & CO_OPTIMIZED:
        return [(old, new)] if old.co_freevars == new.co_freevars else None
    inner, others = zip(*map(_parted, (old, new)), strict=True)
    if old.co_code != new.co_code or old.co_names != new.co_names or others[0] != others[1] or len(inner[0]) != len(inner[1]):
        return None
    found = [differing(*pair) for pair in zip(*inner, strict=True)]
    return None if None in found else [pair for pairs in found for pair in pairs or ()]


def _parted(code: CodeType) -> tuple[list[CodeType], str]:
    inner = [value for value in code.co_consts if isinstance(value, CodeType)]
    return inner, repr([value for value in code.co_consts if not isinstance(value, CodeType)])


def campaign(tests: Tests, made: dict[str, list[Mistake]], within: float) -> tuple[Survey, list[str]]:
    """What becomes of each mistake within a function that tests run; ``IMPORTED`` of each other one, which is left."""
    survey: Survey = forked(lambda: Survey.of(tests, list(made)))
    print(f"{len(survey.seconds)} tests take {sum(survey.seconds.values()):.0f} s", file=REPORT, flush=True)
    return survey, [outcome for every in made.values() for outcome in _within_functions(tests, survey, every, within)]


def _within_functions(tests: Tests, survey: Survey, every: list[Mistake], within: float) -> Iterator[str]:
    path = str(ROOT / every[0].module)
    text = Path(path).read_text("utf-8")
    tree, code = ast.parse(text), compile(text, path, "exec")
    functions: dict[CodeType, list[FunctionType]] = defaultdict(list)
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and found.__code__.co_filename == path:
            functions[found.__code__].append(found)

    def noticed(pairs: list[tuple[CodeType, CodeType]], seconds: dict[str, float]) -> str:
        for old, new in pairs:
            for function in functions[old]:
                function.__code__ = new
        return tests.notice(seconds, within)

    for mistake in every:
        pairs = differing(code, compile(mistake.text, path, "exec"))
        seconds = survey.tests_of(mistake.module, statement(tree, mistake.line))
        if pairs == []:
            yield NONE
        elif not pairs or not all(old in functions for old, _ in pairs) or not seconds:  # what no test runs may run at import
            yield IMPORTED
        else:
            yield told(mistake, forked(partial(noticed, pairs, seconds)) or SLOW)


def imported(mistake: Mistake, survey: Survey, within: float) -> str:
    """What becomes of a mistake outside of functions."""
    original, path = SourceFileLoader.get_code, str(ROOT / mistake.module)

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        if os.path.realpath(loader.path) != path:
            return original(loader, name)
        return compile(mistake.text, path, "exec")  # type: ignore[no-any-return]

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    name = mistake.module.partition("/")[2].removesuffix(".py").replace("/", ".")
    try:
        __import__(name)
    except Exception:
        return NONE
    seconds = survey.tests_of(mistake.module)
    files = sorted({test.partition("::")[0] for test in seconds})
    return Tests.collected(files, lambda tests: tests.notice(seconds, within)) or NOTICED


def excuses() -> dict[tuple[str, str, str], str]:
    """Why mistakes that survive change nothing, by module, line, and what that becomes."""
    table = tomllib.loads(EXCUSED.read_text("utf-8")).get("excused", ())
    return {(one["module"], one["line"], change): one["reason"] for one in table for change in one["changes"]}


def is_excused(mistake: Mistake) -> bool:
    return (mistake.module, mistake.was, mistake.change) in excuses()


def told(mistake: Mistake, outcome: str) -> str:
    """Print a mistake that survived without an excuse; returns what became of it."""
    if outcome == SURVIVED and is_excused(mistake):
        return EXCUSE
    if outcome == SURVIVED:
        print(f"{mistake.module}:{mistake.line}", mistake.was, mistake.change, "", sep="\n", file=REPORT, flush=True)
    return outcome


def outcomes_of(made: dict[str, list[Mistake]], files: list[str], within: float) -> list[tuple[Mistake, str]]:
    """Make these mistakes, and let these tests notice them."""
    survey, outcomes = forked(lambda: Tests.collected(files, lambda tests: campaign(tests, made, within)))
    found = list(zip((one for every in made.values() for one in every), outcomes, strict=True))
    for index, (mistake, outcome) in enumerate(found):
        if outcome == IMPORTED:
            found[index] = mistake, told(mistake, forked(partial(imported, mistake, survey, within)) or SLOW)
    return found


def figures(name: str, found: Iterable[str]) -> str:
    """One line: how many of those that change something were noticed."""
    of = Counter(found)
    noticed = of[NOTICED] + of[SLOW]
    valid = noticed + of[SURVIVED]
    return (
        f"{name}: {noticed} of {valid} noticed, {noticed / max(1, valid):.1%} ({of[SLOW]} of them by taking too long); "
        f"{of[SURVIVED]} survived, {of[EXCUSE]} more are excused"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES), help=f"of {', '.join(MODULES)}, or paths")
    parser.add_argument("--sample", type=int, default=0, help="mistakes tried in each module; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=math.inf, help="seconds that tests may take for one mistake")
    parser.add_argument("--tests", nargs="*", help="files or folders of tests, instead of all of the package's")
    options = parser.parse_args()
    os.chdir(ROOT)
    hypothesis.settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    found: list[tuple[Mistake, str]] = []
    for package, folders in TESTS.items():
        made: dict[str, list[Mistake]] = defaultdict(list)
        for path in (Path(MODULES.get(name, name)) for name in options.modules):
            files = [str(file) for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
            for mistake in mistakes((file for file in files if file.startswith(package)), options.sample, options.seed):
                if options.sample and is_excused(mistake):
                    found.append((mistake, EXCUSE))
                else:
                    made[mistake.module].append(mistake)
        if made:
            found += outcomes_of(made, options.tests or folders, options.within)
    modules = sorted({mistake.module for mistake, _ in found})
    for module in modules:
        print(figures(module, (outcome for mistake, outcome in found if mistake.module == module)), file=REPORT)
    print(figures("together", (outcome for _, outcome in found)), file=REPORT)
    if not options.sample:
        there = {(mistake.module, mistake.was, mistake.change) for mistake, _ in found}
        for module, line, change in sorted(excuses().keys() - there):
            if module in modules:
                print(f"an excuse fits nothing any more: {module}: {line} -> {change}", file=REPORT)
    REPORT.close()


if __name__ == "__main__":
    main()
