"""The dry run of a release: both distributions are built, looked into, and used as installed."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the dev extra is not installed")
pytest.importorskip("hatchling", reason="the dev extra is not installed")
ROOT = Path(__file__).parents[2]


def test_both_hold_what_they_should_and_nothing_else(tool, built):
    distributions = tool("distributions")
    assert distributions.wheel_problems(built[0]) == []
    assert distributions.sdist_problems(built[1]) == []


def test_the_wheel_has_every_file_of_the_packages(built):
    with zipfile.ZipFile(built[0]) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    folders = [ROOT / "src", ROOT / "adapters", ROOT / "examples"]
    packages = {name.partition("/")[0] for name in inside}
    there = {
        path.relative_to(folder).as_posix()
        for folder in folders
        for package in packages
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == there


def test_building_twice_gives_the_same_bytes(tool, built, tmp_path):
    again = tool("distributions").build(tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("tests/test_x.py", b"", "is none of ours"),
        ("comfy/model.py", b"", "is none of ours"),
        ("magpolicy/__pycache__/a.py", b"", "left behind"),
        ("magpolicy/.pytest_cache/README.md", b"", "left behind"),
        ("magpolicy/notes.pkl", b"", "an ending that nothing of ours has"),
        ("magpolicy/a.py", b"x = '/home/builder/magpolicy'", "names a path of a machine: /home/builder/magpolicy"),
        ("magpolicy_demo/more.safetensors", b"0" * 100, None),
    ],
)
def test_what_does_not_belong_into_a_wheel_is_found(tool, built, tmp_path, name, text, problem):
    wheel = tmp_path / built[0].name
    wheel.write_bytes(built[0].read_bytes())
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, text)
    found = tool("distributions").wheel_problems(wheel)
    assert any(problem in line for line in found) if problem else found == []


def test_what_is_missing_from_a_wheel_and_what_is_too_large_is_found(tool, tmp_path):
    wheel = tmp_path / "magpolicy-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("magpolicy/large.json", b"0" * 6_000_000)
    found = tool("distributions").wheel_problems(wheel)
    assert "magpolicy/py.typed is missing" in found
    assert "the licence is missing" in found
    assert any("more than 5,000,000" in line for line in found)


def test_links_and_hosts_in_a_source_distribution_are_found(tool, tmp_path):
    sdist = tmp_path / "magpolicy-0.1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        link = tarfile.TarInfo("magpolicy-0.1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("magpolicy-0.1.0/hosts/comfy/model.py"), io.BytesIO())
    found = tool("distributions").sdist_problems(sdist)
    assert "magpolicy-0.1.0/link is no plain file" in found
    assert "pyproject.toml is missing" in found
    assert "hosts/comfy/model.py was left behind by a tool, or is a host's" in found


def test_a_folder_that_holds_distributions_is_not_added_to(tool, built):
    with pytest.raises(SystemExit, match="already; remove it, or name another folder"):
        tool("distributions").build(built[0].parent)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["wheel", "sdist"])
def test_both_work_as_installed(tool, built, tmp_path, which):
    pytest.importorskip("click", reason="the cli extra is not installed")
    printed = tool("fresh_install").try_installed(built[which], tmp_path / "venv", borrow=True)
    assert "14 computed  2.14x" in printed.splitlines()[0]
