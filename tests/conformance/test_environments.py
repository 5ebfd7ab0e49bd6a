"""Environments of readers: what happens where one cannot be built."""

import subprocess
import sys

import environments
import pytest
from environments import build, environment, requirement_files, run


def test_requirements_are_files_of_their_own():
    names = [file.name for file in requirement_files("finn-base")]
    assert names == ["finn-base.txt", "finn-base.nodeps.txt"]
    with pytest.raises(FileNotFoundError, match=r"no .*fin-base.*there are .*finn-base"):
        requirement_files("fin-base")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "WHOLE", False)
    return monkeypatch


def test_what_takes_too_long_is_a_skip_that_says_so(elsewhere):
    def slow(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    elsewhere.setattr(subprocess, "run", slow)
    with pytest.raises(pytest.skip.Exception, match="qonnx does not install in .* s; `make conformance` takes longer"):
        environment("qonnx")
    elsewhere.setattr(environments, "WHOLE", True)
    with pytest.raises(pytest.fail.Exception, match="qonnx does not install"):
        environment("qonnx")


def test_a_failed_installation_is_a_skip_with_pip_s_reason_and_leaves_no_stamp(elsewhere):
    def failing(command, **options):
        if "pip" in command:
            raise subprocess.CalledProcessError(1, command, stderr="collecting\nERROR: No matching distribution")

    elsewhere.setattr(subprocess, "run", failing)
    with pytest.raises(pytest.skip.Exception, match="qonnx does not install with Python .*: ERROR: No matching"):
        environment("qonnx")
    assert not list(environments.ENVIRONMENTS.rglob(".stamp"))


def test_large_ones_are_for_make_conformance(elsewhere):
    with pytest.raises(pytest.skip.Exception, match="hls4ml is large to install; `make conformance` runs this"):
        environment("hls4ml", heavy=True)


def test_an_environment_is_built_once_and_again_when_its_requirements_change(elsewhere, tmp_path):
    commands = []
    elsewhere.setattr(environments, "HERE", tmp_path)
    (tmp_path / "requirements").mkdir()
    requirements = tmp_path / "requirements" / "reader.txt"
    requirements.write_text("reader==1.0\n")

    def noted(command, **options):
        commands.append(command)
        if "venv" in command:
            (tmp_path / "environments" / "reader").mkdir()

    elsewhere.setattr(subprocess, "run", noted)
    for _ in range(2):
        python = build("reader")
    assert python.parts[-3:] == ("reader", "bin", "python") and len(commands) == 2
    requirements.write_text("reader==1.1\n")
    build("reader")
    assert len(commands) == 4


def test_a_script_that_fails_shows_its_error(tmp_path):
    with pytest.raises(AssertionError, match="(?s)run_finn_base.py failed.*No module named .finn"):
        run(sys.executable, "run_finn_base.py", [tmp_path])
