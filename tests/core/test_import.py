"""What ``import magpolicy`` brings, and what it must not."""

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import magpolicy

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "click", "typer", "rich", "cattrs", "matplotlib",
         "PIL", "skimage", "hypothesis", "pytest", "magpolicy_torch", "magpolicy_demo")  # fmt: skip


def python(code, *arguments):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "MAGPOLICY_DISABLE_PLUGINS": ""}
    done = subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_framework_no_host_and_no_convenience():
    code = f"""
import sys
import magpolicy
magpolicy.simulate("flux", steps=20)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_import_alone_loads_nothing_of_ours_nor_numpy():
    code = "import sys, magpolicy; print([n for n in sys.modules if n == 'numpy' or n.startswith('magpolicy.')])"
    assert python(code).strip() == "[]"


def test_a_preview_does_not_look_for_plugins():
    assert python("import sys, magpolicy; magpolicy.simulate('flux'); print('pluggy' in sys.modules)").strip() == "False"


def test_import_alone_does_not_look_for_plugins():
    assert python("import sys, magpolicy; print('pluggy' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("package", ["magpolicy", "magpolicy_torch", "magpolicy_diffusers"])
def test_public_classes_say_where_they_are_public(package):
    """So that tracebacks, pickles and reprs name no module that may move."""
    if package != "magpolicy":
        pytest.importorskip(package.replace("magpolicy_", ""), reason="an extra is not installed")
    loaded = importlib.import_module(package)
    classes = {name: value for name in loaded.__all__ if isinstance(value := getattr(loaded, name), type)}
    assert len(classes) > 0
    assert {name: kind.__module__ for name, kind in classes.items()} == dict.fromkeys(classes, package)


def test_pickles_of_results_name_no_private_module():
    with magpolicy.Session("flux", steps=4) as session:
        for _ in range(4):
            session.decide()
            session.commit()
    residuals = {name: [[[float(i * j + 1)] for j in range(3)] for i in range(6)] for name in ("cond", "uncond")}
    calibration = magpolicy.Calibration.from_residuals(residuals)
    sweep = magpolicy.sweep("flux", thresholds=[0.1], max_skips=[3], retentions=[0.2])
    policy = magpolicy.MagPolicy([1.0, 1.1], threshold=0.1, max_skips=2, retention=0.0)
    schedules = [magpolicy.simulate("flux"), magpolicy.plan(calibration, computed=3)]
    values = [session.trace, calibration, sweep, policy, schedules, magpolicy.preset("flux"), magpolicy.semantics("magpolicy")]
    for value in values:
        pickled = pickle.dumps(value)
        assert set(re.findall(rb"magpolicy[.\w]+", pickled)) <= {b"magpolicy"}, value
        assert repr(pickle.loads(pickled)) == repr(value) or value is policy


def test_everything_but_the_adapters_works_without_torch():
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import warnings
warnings.simplefilter("error")
import magpolicy
for name in magpolicy.__all__:
    getattr(magpolicy, name)
schedule = magpolicy.simulate("wan2.1-t2v-1.3b", steps=30)
with magpolicy.Session("flux", steps=20) as session:
    session.decide()
    session.commit()
assert magpolicy.sweep("flux", thresholds=[0.1], max_skips=[3], retentions=[0.2]).front()
magpolicy.presets()["chroma"].curve.resample(steps=17)
magpolicy.plugins()
try:
    magpolicy.attach(object(), preset="flux")
except magpolicy.AdapterError as error:
    print(error)
print(schedule)
"""
    first, second = python(code).splitlines()
    assert first.startswith("target=builtins.object is nothing an installed adapter can drive")
    assert second.startswith("30 steps █")


@pytest.mark.parametrize("flags", [["-W", "error"], ["-O"], ["-OO"]], ids=" ".join)
def test_it_imports_twice_and_with_any_flags(flags):
    python("import magpolicy, importlib; importlib.reload(magpolicy); magpolicy.simulate('flux')", *flags)


def test_all_is_complete_and_sorted():
    assert list(magpolicy.__all__) == sorted(magpolicy.__all__)
    assert len(set(magpolicy.__all__)) == len(magpolicy.__all__)
    source = Path(magpolicy.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == set(magpolicy.__all__)


@pytest.mark.parametrize("name", magpolicy.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(magpolicy, name)
    assert name in dir(magpolicy)
    if name != "__version__" and not hasattr(value, "spec"):
        assert value.__doc__


def test_a_name_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"magpolicy.*plan9"):
        _ = magpolicy.plan9
    assert not hasattr(magpolicy, "plan9")


def test_star_import_brings_the_public_names():
    assert python("from magpolicy import *; print(callable(simulate), callable(attach), MagPolicy.__name__)") == (
        "True True MagPolicy\n"
    )


def test_the_version_is_that_of_the_project_file_in_a_clone_and_else_of_the_package(tmp_path):
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    package = Path(magpolicy.__file__).parent
    if (project := package.parents[1] / "pyproject.toml").is_file():
        assert tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"] == magpolicy.__version__

    def told(version, project):
        site = tmp_path / version / "lib" / "packages"
        (site / "magpolicy").mkdir(parents=True)
        (site / "magpolicy" / "_version.py").write_bytes((package / "_version.py").read_bytes())
        (site / f"magpolicy-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: magpolicy\nVersion: {version}\n"
        (site / f"magpolicy-{version}.dist-info" / "METADATA").write_text(metadata, encoding="utf-8")
        (site.parent / "pyproject.toml").write_text(project, encoding="utf-8")
        code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); print(runpy.run_path(sys.argv[2])['__version__'])"
        arguments = [sys.executable, "-c", code, site, site / "magpolicy" / "_version.py"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert told("7.0.1", '[project]\nname = "magpolicy"\nversion = "7.1.0"\n') == "7.1.0"
    assert told("7.0.2", '[project]\nname = "of-a-user"\nversion = "3"\n') == "7.0.2"


def test_types_are_shipped():
    assert (Path(magpolicy.__file__).parent / "py.typed").is_file()


def test_errors_can_be_caught_by_one_class_and_by_the_usual_ones():
    for error, usual in [
        (magpolicy.ArgumentError, ValueError),
        (magpolicy.PresetError, ValueError),
        (magpolicy.RunError, RuntimeError),
        (magpolicy.AdapterError, TypeError),
        (magpolicy.MissingExtraError, ImportError),
    ]:
        assert issubclass(error, magpolicy.MagPolicyError)
        assert issubclass(error, usual)
