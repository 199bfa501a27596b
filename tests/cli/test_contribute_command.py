"""``magpolicy library contribute``, ``check``, and ``import`` of addresses: a calibration goes from one person to another."""

import importlib.util
import json
import os
import pickle
import ssl
from pathlib import Path

import numpy as np
import pytest

import magpolicy
from magpolicy.adapter import ModelIdentity
from magpolicy.catalog import _contributed, _exchange
from magpolicy.files import _fetching

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("cattrs")

IDENTITY = ModelIdentity("FluxTransformer2DModel", "c", "org/flux", "w")
GIVEN = ("--by", "A. Person", "--licence", "CC0-1.0")


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Runs ``library`` in a folder of its own, and returns its exit code and what it printed."""
    from magpolicy.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))

    def command(*args):
        code = main(["library", *map(str, args)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return command


def made(name="mine", **about):
    path = np.cumsum(np.random.default_rng(0).normal(size=(12, 2, 4)), axis=0)
    known = {"identity": IDENTITY.to_dict(), "model": IDENTITY.model, "repo": "org/flux", "versions": {"torch": "2"}} | about
    return magpolicy.Calibration.from_residuals({"cond": path, "uncond": path**2}, name=name, provenance=known)


def contributed(run, **about):
    magpolicy.keep(made(**about))
    code, out, err = run("contribute", "mine", "-o", "flux.json", *GIVEN)
    assert (code, err) == (0, "")
    return out


def test_one_command_writes_it_and_another_person_takes_it_in(run, tmp_path, monkeypatch):
    out = contributed(run, guidance=3.5)
    assert "written: flux.json" in out
    assert "org/flux, FluxTransformer2DModel, 12 steps, cond and uncond" in out
    assert "by A. Person, CC0-1.0, sha256:" in out
    assert "at twice the speed: 12 steps" in out
    assert (tmp_path / "flux.json").stat().st_size < _contributed.MAX_CONTRIBUTED
    assert "good: flux.json" in run("check", "flux.json")[1]
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "theirs"))
    assert run("import", "flux.json", "--name", "theirs")[0] == 0
    kept = magpolicy.preset("theirs").calibration
    assert kept.streams == made().streams
    assert kept.provenance["contribution"]["by"] == "A. Person"
    assert [p.name for p in magpolicy.adapter.kept_for(IDENTITY)] == ["theirs"]
    assert run("export", "theirs", "-o", "again.json")[0] == 0  # the digest holds under another name, and after a round more
    assert run("check", "again.json")[0] == 0


def test_what_is_nobodys_business_stays(run, tmp_path):
    out = contributed(run, prompt="my secret", path="/home/me/flux")
    assert "left out of it: path, prompt" in out
    text = (tmp_path / "flux.json").read_text()
    assert "my secret" not in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"identity": {"model": "M"}}, "is no repo id"),
        ({"identity": {"model": "M", "repo": "folder"}}, "repo='folder' is no repo id"),
        ({"identity": {"model": ""}, "model": None}, "no model is named"),
        ({"versions": {}}, "no versions"),
    ],
)
def test_what_others_need_to_know_is_asked_for(run, tmp_path, about, words):
    magpolicy.keep(made(**about))
    code, _, err = run("contribute", "mine", "-o", "flux.json", *GIVEN)
    assert code == 2
    assert words in err
    assert not (tmp_path / "flux.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--by", "", "--licence", "MIT"), "names nobody"),
        (("--by", "x" * 101, "--licence", "MIT"), "at most 100"),
        (("--by", "a\x1b[31m", "--licence", "MIT"), "one line"),
        (("--by", "me", "--licence", "mine"), "CC0-1.0"),
        (("--licence", "MIT"), "--by"),
        (("--by", "me"), "--licence"),
    ],
)
def test_it_says_by_whom_and_under_which_licence(run, options, words):
    magpolicy.keep(made())
    code, _, err = run("contribute", "mine", "-o", "flux.json", *options)
    assert code == 2
    assert words in err
    assert "\x1b" not in err


def test_a_table_is_none_and_only_json_is_written(run, tmp_path):
    (tmp_path / "t.toml").write_text('name = "table"\nratios = [1.0, 1.1]\n')
    assert run("import", "t.toml")[0] == 0
    assert "is a preset and no calibration" in run("contribute", "table", "-o", "t.json", *GIVEN)[2]
    assert "is a table and no calibration" in run("check", "t.toml")[2]
    magpolicy.keep(made())
    assert "must end in .json" in run("contribute", "mine", "-o", "flux.safetensors", *GIVEN)[2]
    (tmp_path / "folder").mkdir()
    assert run("contribute", "mine", "-o", "folder", *GIVEN)[0] == 0
    assert (tmp_path / "folder" / "mine.json").exists()


def test_the_contribution_is_not_only_claimed(run):
    magpolicy.keep(made())
    assert run("export", "mine", "-o", "plain.json")[0] == 0
    code, _, err = run("check", "plain.json")
    assert code == 2
    assert "neither by whom it is nor its licence" in err


def places(value, path=()):
    """The path of every value in a file's content."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    else:
        yield path


def test_whatever_is_changed_in_it_is_noticed(run, tmp_path):
    contributed(run)
    content = json.loads((tmp_path / "flux.json").read_text())
    tried = 0
    for path in places(content):
        if path[0] in ("name", "kind", "version") or (tried > 60 and path[0] == "streams"):
            continue
        tried += 1
        other = json.loads(json.dumps(content))
        inside = other
        for key in path[:-1]:
            inside = inside[key]
        was = inside[path[-1]]
        inside[path[-1]] = was + "x" if isinstance(was, str) else 1.0 if was is None else was * (1 + 1e-12) + 1e-9
        (tmp_path / "other.json").write_text(json.dumps(other))
        code, _, err = run("import", "other.json", "--name", f"n{tried}")
        assert code == 2, path
        assert "other.json" in err
    assert tried > 40
    assert {file.name for file in (tmp_path / "home").iterdir()} == {"mine.json"}


@pytest.fixture(scope="module")
def files():
    """The answers of ``tests/core/test_fetching.py``, from a folder."""
    place = Path(__file__).parents[1] / "core" / "test_fetching.py"
    spec = importlib.util.spec_from_file_location("fetching_server", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(files, monkeypatch, tmp_path):
    """The address of a server that gives what lies in the folder."""
    import threading

    class FromFolder(files.Answers):
        def do_GET(self):
            file = tmp_path / self.path[1:]
            self.say(*((200, file.read_bytes()) if file.is_file() else (404, b"")))

    server = files.Quiet(("127.0.0.1", 0), FromFolder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.CERTIFICATE)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    trust = ssl.create_default_context(cafile=str(files.CERTIFICATE))
    monkeypatch.setattr(_exchange, "fetched", lambda address: _fetching.fetched(address, trust=trust, most=200_000))
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_imported_and_checked_as_a_file_is(run, site, tmp_path):
    contributed(run)
    assert f"good: {site}/flux.json" in run("check", f"{site}/flux.json")[1]
    code, out, err = run("import", f"{site}/flux.json", "--name", "fetched")
    assert (code, err) == (0, "")
    assert out == f"kept: {tmp_path / 'home' / 'fetched.json'}\n"
    (tmp_path / "t.toml").write_text('name = "table"\nratios = [1.0, 1.1]\n')
    assert run("import", f"{site}/t.toml")[0] == 0
    assert magpolicy.preset("table").steps == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.json", None, "404"),
        ("page.html", b"<html>", "must end in .json"),
        ("broken.json", b"{", "is not valid JSON"),
        ("large.json", b" " * 200_001, "more bytes than are fetched"),
        ("run.pkl", pickle.dumps(os.getcwd), "must end in .json"),
        ("run.json", pickle.dumps(os.getcwd), "UTF-8"),
        ("run.safetensors", pickle.dumps(os.getcwd), "holds no calibration"),
    ],
)
def test_what_is_none_is_told_by_its_address(run, site, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("import", f"{site}/{name}")
    assert code == 2
    assert words in err
    assert f"{site}/{name}" in err
    assert "magpolicy-" not in err.replace("magpolicy-calibration", "")  # no path of a folder that is gone
    assert not (tmp_path / "home").exists() or list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "address", ["http://localhost/a.json", "ftp://h/a.json", "file:///tmp/a.json", "https://me:x@h/a.json"]
)
def test_addresses_other_than_https_are_refused(run, address):
    code, _, err = run("import", address)
    assert code == 2
    assert "only https" in err or "a name or a password" in err
    assert "download it" in err


def test_what_people_gave_can_be_taken_up(run):
    folder = Path(__file__).parents[2] / "calibrations"
    for file in sorted(folder.glob("*.json")):
        code, _, err = run("check", file)
        assert (code, err) == (0, "")
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".md"}
