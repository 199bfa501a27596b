"""The command line, by real processes."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import magpolicy

pytest.importorskip("click")
pytest.importorskip("rich")

ANSI = "\x1b"
SETTINGS = ("--threshold", ".06", "-K", "2", "--retention", ".2")
COMMANDS = ("simulate", "sweep", "plan", "compare", "calibrate", "presets", "semantics", "plugins", "demo")

# Runs several command lines in one process and reports [exit code, stdout, stderr] for each.
MANY = """
import contextlib, io, json, sys
from magpolicy.cli import main
results = []
for args in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def environment(*first, **extra):
    """This process's environment and import path, with ``first`` before it."""
    path = [str(entry) for entry in first] + [os.path.abspath(entry) for entry in sys.path if entry]
    kept = {key: value for key, value in os.environ.items() if key != "MAGPOLICY_DISABLE_PLUGINS"}
    return kept | {"PYTHONPATH": os.pathsep.join(path), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"} | extra


def run(*args, stdin="", env=None, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "magpolicy", *map(str, args)],
        input=stdin, capture_output=True, encoding="utf-8", env=env or environment(), cwd=cwd, timeout=60, check=False,
    )  # fmt: skip


def output_of(*args, **options):
    done = run(*args, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ANSI not in done.stdout
    return done.stdout


def many(*command_lines, env=None):
    done = subprocess.run(
        [sys.executable, "-c", MANY], input=json.dumps(command_lines), capture_output=True, encoding="utf-8",
        env=env or environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def table(text):
    """Rows of a piped table as dicts; columns are at least two spaces apart."""
    header, *lines = text.splitlines()
    names = re.split(r" {2,}", header.strip())
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def stub(folder, module, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    return folder


def missing(folder, module):
    return stub(folder, module, f"raise ModuleNotFoundError(\"No module named '{module}'\", name={module!r})\n")


# simulate


def test_simulate_prints_the_schedule_plain_into_a_pipe():
    shown = output_of("simulate", "flux.1-dev", "--steps", 20, env=environment(FORCE_COLOR="1", COLUMNS="20"))
    first, reasons, error = shown.splitlines()
    schedule = magpolicy.simulate("flux.1-dev", steps=20)
    assert first == str(schedule)
    assert {n: int(c) for c, n in re.findall(r"(\d+) (\w+)", reasons)} == schedule.reasons()
    assert float(error.split()[-1]) == pytest.approx(schedule.error, rel=0.01)


def test_simulate_json_is_to_dict_with_every_setting_passed_on():
    rule = "--threshold .3 -K 3 --retention .1 --semantics official/wan2.2 --separate --expert-step 20"
    limits = "--steps 38 --start-step 2 --end-step -2 --forced 9,-5 --part 4:36"
    shown = output_of("simulate", "wan2.2", *rule.split(), *limits.split(), "--json")
    schedule = magpolicy.simulate(
        "wan2.2", steps=38, semantics="official/wan2.2", threshold=0.3, max_skips=3, retention=0.1, start_step=2,
        end_step=-2, forced=[9, -5], batched=False, expert_step=20, part=(4, 36),
    )  # fmt: skip
    assert json.loads(shown) == schedule.to_dict()
    assert magpolicy.Schedule.from_dict(json.loads(shown)) == schedule


def test_simulate_reads_ratios_from_standard_input_and_shows_streams_that_differ():
    ratios = {"cond": [1, 1.1, 1, 1], "uncond": [1, 1, 1, 1]}
    shown = output_of("simulate", "-", *SETTINGS, stdin=json.dumps(ratios))
    schedule = magpolicy.simulate(ratios, threshold=0.06, max_skips=2, retention=0.2)
    first, cond, uncond, _ = shown.splitlines()
    assert first == str(schedule)
    assert cond.split()[:2] == ["cond", "██··"]
    assert uncond.split()[:2] == ["uncond", "█··█"]


def test_simulate_takes_ratios_written_out_and_noise_levels():
    (code, shown, _), (other, levels, _) = many(
        ["simulate", "1, 1.02,0.99,.98", *SETTINGS],
        ["simulate", "flux", "--sigmas", "1,.7,.5,.2,0", "--json"],
    )
    assert (code, other) == (0, 0)
    expected = magpolicy.simulate([1, 1.02, 0.99, 0.98], threshold=0.06, max_skips=2, retention=0.2)
    assert shown.splitlines()[0] == str(expected)
    assert json.loads(levels) == magpolicy.simulate("flux", sigmas=[1, 0.7, 0.5, 0.2]).to_dict()


def test_a_shift_stands_for_the_noise_levels_of_its_steps():
    source, shifted = "wan2.1-t2v-1.3b", ["--steps", "20", "--shift", "5"]
    (code, shown, _), (_, planned, _), (_, compared, _), *wrong = many(
        ["simulate", source, *shifted, "--json"],
        ["plan", source, *shifted, "--speedup", "2"],
        ["compare", source, *shifted, "speedup=2", "speedup=3"],
        ["plan", source, "--shift", "5", "--speedup", "2"],
        ["simulate", source, "--sigmas", "1,.5", "--shift", "5"],
        ["simulate", source, "--steps", "20", "--shift", "0"],
    )
    assert code == 0
    levels = magpolicy.flow_sigmas(20, shift=5)
    assert json.loads(shown) == magpolicy.simulate(source, sigmas=levels).to_dict()
    plan = magpolicy.plan(source, sigmas=levels, speedup=2)
    assert planned.splitlines()[0] == str(plan)
    distance = f"  expected distance {magpolicy.expected_distance(source, plan, sigmas=levels):.3g};"
    assert planned.splitlines()[1].startswith(distance)
    assert compared.splitlines()[1].strip().startswith(distance.strip())
    assert [code for code, *_ in wrong] == [2, 2, 2]
    for (*_, said), words in zip(wrong, ("try --steps 20", "contradicts sigmas", "must be from"), strict=True):
        assert said.startswith("Error: --shift=")
        assert words in said


def test_simulate_reads_a_preset_file_and_draws(tmp_path):
    pytest.importorskip("cattrs")
    pytest.importorskip("matplotlib")
    content = {"name": "mine", "ratios": [1.0, 1.02, 0.99, 0.98], "threshold": 0.06, "max_skips": 2, "retention": 0.2}
    (tmp_path / "mine.json").write_text(json.dumps(content), encoding="utf-8")
    done = run("simulate", "mine.json", "--plot", "mine.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # where matplotlib may speak of its font cache
    lines = done.stdout.splitlines()
    assert lines[0] == str(magpolicy.simulate(tmp_path / "mine.json"))
    assert lines[-1] == f"picture: {(tmp_path / 'mine.png').resolve()}"
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_simulate_is_coloured_on_a_terminal():
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    env = environment(TERM="xterm-256color")
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "magpolicy", "simulate", "flux"]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env) as process:
        os.close(follower)
        chunks = []
        try:
            while chunk := os.read(leader, 4096):
                chunks.append(chunk)
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait(60) == 0
    os.close(leader)
    shown = b"".join(chunks).decode()
    assert ANSI in shown
    assert str(magpolicy.simulate("flux")) in re.sub(r"\x1b\[[\d;]*m", "", shown)


# sweep


def test_sweep_shows_the_front_or_everything():
    ranges = ["--thresholds", "0.06:0.24:0.06", "-K", "1:3,6", "--retentions", ".1,.2"]
    (code, front, _), (_, everything, _), (_, limited, _) = many(
        ["sweep", "flux", "--steps", "20", *ranges],
        ["sweep", "flux", "--steps", "20", *ranges, "--all", "--json"],
        ["sweep", "flux", "--steps", "20", *ranges, "--all", "--limit", "2"],
    )
    assert code == 0
    expected = magpolicy.sweep(
        "flux", steps=20, thresholds=[0.06, 0.12, 0.18, 0.24], max_skips=[1, 2, 3, 6], retentions=[0.1, 0.2]
    )
    keys = ("threshold", "K", "retention")
    assert [(*(float(r[key]) for key in keys), r["computed"], r["speedup"]) for r in table(front)] == [
        (r.threshold, r.max_skips, r.retention, f"{r.computed}/20", f"{r.speedup:.2f}x") for r in expected.front()
    ]
    keys = ("threshold", "max_skips", "retention", "computed", "error")
    assert [tuple(row[key] for key in keys) for row in json.loads(everything)] == [
        (r.threshold, r.max_skips, r.retention, r.computed, r.error) for r in expected
    ]
    assert len(table(limited)) == 2


# presets, semantics


def test_presets_lists_the_recommended_settings_of_the_origin():
    rows = {row["name"]: row for row in table(output_of("presets", env=environment(COLUMNS="20")))}
    assert list(rows) == list(magpolicy.presets())
    published = {  # threshold, retention, K: README of Zehong-Ma/ComfyUI-MagCache
        "flux.1-dev": (".24", ".1", "5"),
        "chroma": (".10", ".25", "2"),
        "hunyuanvideo-t2v-720p": (".24", ".2", "6"),
        "wan2.1-t2v-1.3b": (".12", ".2", "4"),
        "wan2.1-t2v-14b": (".24", ".2", "6"),
        "wan2.1-i2v-14b-480p": (".24", ".2", "6"),
        "wan2.1-i2v-14b-720p": (".24", ".2", "6"),
        "flux.1-kontext-dev": (".05", ".2", "4"),
        "qwen-image-comfyui": (".10", ".2", "2"),
        "hunyuanvideo-1.5-t2v-20": (".03", ".25", "2"),
        "wan2.1-vace-1.3b": (".02", ".2", "3"),
        "wan2.1-vace-14b": (".02", ".2", "3"),
    }
    shown = {name: tuple(float(rows[name][key]) for key in ("threshold", "retention", "K")) for name in published}
    assert shown == {name: tuple(map(float, values)) for name, values in published.items()}
    assert (rows["flux.1-dev"]["steps"], rows["flux.1-dev"]["alias"]) == ("28", "flux")


def test_presets_shows_one_filters_and_prints_json():
    (code, shown, _), (_, one, _), (_, family, _) = many(
        ["presets", "Flux"], ["presets", "wan2.2", "--json"], ["presets", "--family", "WAN2", "--json"]
    )
    assert code == 0
    flux = magpolicy.preset("flux")
    for text in (flux.name, *flux.aliases, *flux.conflicts, *(s.kind for s in flux.settings)):
        assert text in shown
    assert f"{flux.source['path']}#L{flux.source['line']}" in shown
    wan = magpolicy.preset("wan2.2")
    assert json.loads(one)["ratios"] == {name: list(values) for name, values in wan.curve.ratios.items()}
    assert json.loads(one)["expert_boundary"] == wan.expert_boundary
    named = [p.name for p in magpolicy.presets().values() if p.family.startswith("wan2")]
    assert [row["name"] for row in json.loads(family)] == named


def test_semantics_are_listed_with_their_options():
    (code, shown, _), (_, one, _), (_, everything, _) = many(
        ["semantics"], ["semantics", "official/flux"], ["semantics", "--json"]
    )
    assert code == 0
    assert [row["name"] for row in table(shown)] == list(magpolicy.semantics_names())
    assert "forbidden_index=11" in shown
    assert re.search(r"^comparison +<=$", one, re.MULTILINE)
    rows = json.loads(everything)
    assert [magpolicy.Semantics(**row) for row in rows] == [magpolicy.semantics(n) for n in magpolicy.semantics_names()]


# plugins


GOOD = """
import magpolicy

@magpolicy.hookimpl
def presets():
    return [magpolicy.Preset(name="pear", curve=magpolicy.Curve([1.0, 1.1]))]
"""


@pytest.fixture
def distributions(tmp_path):
    """A folder with two installed distributions, a plugin that works and one that doesn't."""
    for name, text in {"good_plugin": GOOD, "broken_plugin": "raise RuntimeError('no luck')\n"}.items():
        stub(tmp_path, name, text)
        info = tmp_path / f"{name}-3.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 3.1\n")
        (info / "entry_points.txt").write_text(f"[magpolicy]\n{name.split('_')[0]} = {name}\n")
    return tmp_path


def test_plugins_lists_good_and_broken_ones(distributions):
    rows = {row["name"]: row for row in table(output_of("plugins", env=environment(distributions)))}
    assert rows["good"] == {
        "name": "good", "distribution": "good-plugin", "version": "3.1", "hooks": "presets", "problem": "-"
    }  # fmt: skip
    assert rows["broken"]["problem"] == "RuntimeError: no luck"


def test_a_broken_plugin_is_one_line_and_the_rest_works(distributions):
    done = run("presets", "pear", env=environment(distributions))
    assert (done.returncode, "pear" in done.stdout) == (0, True)
    assert re.fullmatch(r"Warning: plugin 'broken' of distribution broken-plugin 3\.1 .*\n", done.stderr)


def test_plugins_says_what_is_turned_off(distributions):
    ((_, shown, _), (_, as_json, _)) = many(
        ["plugins"], ["plugins", "--json"], env=environment(distributions, MAGPOLICY_DISABLE_PLUGINS="good,broken")
    )
    assert shown.splitlines()[-1] == "MAGPOLICY_DISABLE_PLUGINS=good,broken is set."
    problems = {row["name"]: row["problem"] for row in json.loads(as_json)}
    assert problems["good"] == problems["broken"] == "turned off by MAGPOLICY_DISABLE_PLUGINS=good,broken"


# demo


def test_demo_hands_its_options_on(tmp_path):
    record = """
import json

def run(*, output, console, **options):
    console.print(json.dumps({"output": str(output), **options}))
"""
    package = stub(tmp_path / "magpolicy_demo", "demo", record)
    (package / "__init__.py").touch()
    options = ["--steps", "9", "--seed", "3", "-K", "2", "-o", "x.png"]
    shown = json.loads(output_of("demo", *options, env=environment(tmp_path), cwd=tmp_path))
    given = {"output": "x.png", "steps": 9, "seed": 3, "max_skips": 2}
    assert shown == given | {"threshold": None, "retention": None}


def test_demo_without_its_extra_names_it(tmp_path):
    done = run("demo", env=environment(missing(tmp_path, "torch")), cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*pip install 'magpolicy\[demo\]'.*\n", done.stderr)


# help, mistakes, and how it ends


def test_help_has_an_example_for_each_command_and_the_examples_work():
    helps = many(["--help"], *([command, "--help"] for command in COMMANDS))
    assert all((code, err) == (0, "") for code, _, err in helps)
    assert all(command in helps[0][1] for command in COMMANDS)
    lines = [line.strip() for _, text, _ in helps for line in text.splitlines()]
    examples = [line for line in lines if line.startswith("magpolicy ")]
    assert set(COMMANDS) == {example.split()[1] for example in examples}
    elsewhere = ("my-model", "demo", "calibrate", "comfyui")  # need a file, minutes, weights, a ComfyUI
    here = [example for example in examples if not any(word in example for word in elsewhere)]
    runnable = [shlex.split(example.split("|")[0])[1:] for example in here]
    assert [code for code, _, _ in many(*runnable)] == [0] * len(runnable)


def test_version():
    assert output_of("--version") == f"magpolicy {magpolicy.__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("simulate fluxx", "preset='fluxx' is not known; did you mean flux"),
        ("simulate flux --threshold -1", "--threshold=-1.0 must be >= 0; try 0.06"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(command, message):
    done = run(*command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


MISTAKES = {
    "simulate": "Missing argument 'SOURCE'",
    "simulate nowhere.json": "nowhere.json cannot be read",
    "simulate 1,1.1": "--threshold=None: ratios alone carry no settings; try --threshold=0.06",
    "simulate 1,x --threshold 1": "'x'; ratios are numbers",
    "simulate 1,-1 --threshold 1 -K 1 --retention 0": "ratios[1]=-1.0 must be a finite ratio > 0",
    "simulate flux --forced 99": "forced holds step 99, the run has 28",
    "simulate flux --forced 1.5": "'1.5' is not a list of whole numbers",
    "simulate flux --part 3": "'3' is not of the form A:B",
    "simulate flux --part 3:99": "must lie within the run's 28 steps",
    "simulate flux --steps 0": "0 is not in the range",
    "simulate flux --semantics mine": "--semantics='mine' is not known; `magpolicy semantics` lists all 3",
    "simulate flux --plot /no/such/folder/x.png": "Invalid value for '--plot': /no/such/folder/x.png",
    "simulate flux --bogus": "No such option",
    "sweep flux --thresholds 3:1": "'3:1' is not a list of numbers; try 0.02:0.3:0.02",
    "sweep flux --thresholds=-1": "--thresholds=-1.0 must be >= 0",
    "sweep flux --retentions 2": "--retentions=2.0 must be from 0 to 1",
    "sweep flux --thresholds 0:1:1e-9": "is not a list of numbers",
    "sweep flux --thresholds 0:1:.001 -K 0:99 --retentions 0:1:.1": "settings to try, at most 100000",
    "presets --family zebra": "no family has 'zebra' in its name; there are flux, ",
    "presets zebra": "preset='zebra' is not known",
    "presets flux --family wan": "NAME and --family: give one of them",
    "semantics zebra": "semantics='zebra' is not known",
    "demo -o x.jpg": "x.jpg must end in .png",
    "demo -o /no/such/folder/x.png": "/no/such/folder is no folder",
    "zebra": "No such command 'zebra'",
}


def test_mistakes_of_every_kind_exit_with_2_and_say_what_is_meant():
    results = many(*map(shlex.split, MISTAKES))
    for (command, message), (code, out, err) in zip(MISTAKES.items(), results, strict=True):
        assert (code, out) == (2, ""), command
        assert message in err, command
        assert Counter(line.split(":")[0] for line in err.splitlines())["Error"] == 1, command


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_its_libraries_it_names_the_extra(tmp_path, module):
    done = run("presets", env=environment(missing(tmp_path, module)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: the command line needs {module}; pip install 'magpolicy[cli]'\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [("magpolicy sim", "simulate"), ("magpolicy simulate flux.1-d", "flux.1-dev"), ("magpolicy simulate --thr", "--threshold")],
)
def test_a_shell_completes_commands_presets_and_options(words, offered):
    asked = {"_MAGPOLICY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    main = "import sys; sys.argv[0] = 'magpolicy'; from magpolicy.cli import main; main()"
    command = [sys.executable, "-c", main]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), **asked}, timeout=60, check=False)
    assert f"plain,{offered}" in done.stdout.splitlines(), done.stdout + done.stderr


def test_a_reader_that_stops_reading_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "magpolicy", "presets"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent another way")
def test_ctrl_c_exits_with_130_and_no_traceback():
    command = [sys.executable, "-m", "magpolicy", "simulate", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def heed_sigint():  # a test run in the background of a script ignores it, and its children would too
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, **pipes, env=environment(), preexec_fn=heed_sigint) as process:
        process.stdin.write(b"1," * 100_000)  # more than a pipe holds: once it is gone, the command is reading
        process.stdin.flush()
        time.sleep(0.3)
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it came just before a read: Python looks after it
                process.wait(3)
                break
        assert process.returncode == 130
        assert process.stdout.read() == b""
        assert b"Traceback" not in process.stderr.read()


def test_python_m_and_the_entry_point_are_one():
    scripts = Path(__file__).parents[2] / "pyproject.toml"
    assert 'magpolicy = "magpolicy.cli:main"' in scripts.read_text(encoding="utf-8")
