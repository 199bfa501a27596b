"""One worker process per ComfyUI version, whose test reports are replayed here.

ComfyUI's modules have names such as ``nodes`` and ``utils`` and exist once a process, so its tests run in processes of their
own, yet are collected, selected and reported like any other test. A worker runs the tests it is told,
one a line: under pytest-xdist the process that started it is given some of them only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from fetching import Unavailable

from host.fetch import chosen, obtain

WORKER = "MAGPOLICY_COMFYUI_WORKER"
ASKED = "MAGPOLICY_COMFYUI_ASKED"
"""The file that says what to run: pytest takes standard input for itself."""
_MARK = "magpolicy-report "
FIXTURE = "comfyui"


class Parent:
    """Plugin of the process the user started: sends tests to workers."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._items: dict[str, list[str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if version := version_of(item):
                self._items.setdefault(version, []).append(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        version = version_of(item)
        if version is None:
            return None
        if version not in self._workers:
            self._workers[version] = _Worker(item.config, version, self._items[version])
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._workers[version].reports(item, nextitem):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # What tests before this one have set up here and those after it do not share is to be torn down now.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_sessionfinish(self) -> None:
        for worker in self._workers.values():
            worker.close()


class Child:
    """Plugin of a worker: runs the tests it is told, and writes every report on its standard output."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._in, self._out = os.fdopen(int(os.environ[ASKED])), os.fdopen(os.dup(1), "w")
        os.set_inheritable(self._in.fileno(), False)  # processes that tests start do not take what is for this one

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:  # while collecting: pytest's own loop says so
            return None
        items = {item.nodeid: item for item in session.items}
        for line in self._in:
            asked, following = json.loads(line)
            item = items[asked]
            # Without a next test pytest would also take down what is made once for all tests.
            after = items.get(following) or next((other for other in session.items if other.path != item.path), None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        session._setupstate.teardown_exact(None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        print(_MARK + json.dumps(data), file=self._out, flush=True)


class _Worker:
    def __init__(self, config: pytest.Config, version: str, nodeids: Sequence[str]) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._why = ""
        self._tail: list[str] = []
        try:
            obtain(version)
        except Unavailable as error:
            self._why = f"no ComfyUI {version}: {error}"
            return
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(config.rootpath), *nodeids]
        reading, writing = os.pipe()
        self._asked = os.fdopen(writing, "w")
        self._process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            env={**os.environ, WORKER: version, ASKED: str(reading), "MAGPOLICY_EVERY": "1"},  # all of those chosen here
            pass_fds=(reading,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(reading)

    def reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[dict[str, Any]]:
        """Run ``item``: the reports of its setup, its call and its end. What the next test shares stays set up."""
        if self._process is None:
            where = (str(item.path), item.location[1] or 0, f"Skipped: {self._why}")
            return [_report(item, "setup", "skipped", where), _report(item, "teardown", "passed")]
        found: list[dict[str, Any]] = []
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: what it said last is read below
            print(json.dumps([item.nodeid, nextitem and nextitem.nodeid]), file=self._asked, flush=True)
        for line in self._process.stdout:
            start = line.find(_MARK)
            if start < 0:
                self._tail = [*self._tail[-60:], line]
                continue
            data = json.loads(line[start + len(_MARK) :])
            if data["nodeid"] != item.nodeid:
                continue  # of a test that was stopped midway
            if isinstance(data["longrepr"], list):
                data["longrepr"] = tuple(data["longrepr"])  # where and why a test was skipped; JSON has no tuples
            found.append(data)
            if data["when"] == "teardown":
                return found
        text = f"the worker ended (exit {self._process.wait()}) before this test did:\n{''.join(self._tail)}"
        return [*found, _report(item, "call", "failed", text), _report(item, "teardown", "passed")]

    def close(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._asked.close()  # nothing more is asked: it takes down what its tests share, and ends
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _report(item: pytest.Item, when: Any, outcome: Any, longrepr: Any = None) -> dict[str, Any]:
    report = pytest.TestReport(item.nodeid, item.location, {}, outcome, longrepr, when)
    data: dict[str, Any] = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    return data


def version_of(item: pytest.Item) -> str | None:
    """The ComfyUI a test asks for, if any."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(FIXTURE)


def versions() -> Sequence[str]:
    """Those to test with here: in a worker its own, else all that were chosen."""
    own = os.environ.get(WORKER)
    return (own,) if own else tuple(chosen())


def setup(config: pytest.Config) -> None:
    """Register what this process needs."""
    if os.environ.get(WORKER):
        config.pluginmanager.register(Child(config), "comfyui-worker")
    else:
        config.pluginmanager.register(Parent(), "comfyui-workers")
