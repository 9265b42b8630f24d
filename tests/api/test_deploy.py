"""deploy/ stays true: what the unit and the Dockerfile say is what command, limits and routes know."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from penstock.api.keys import Keys
from penstock.api.server import bind
from penstock.cli.flags import given_flags
from penstock.cli.main import make_parser
from penstock.cli.serve import read_file
from penstock.config import ServerConfig, read_fields
from penstock.engine.serving import Limits
from penstock.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "deploy" / "penstock.service"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def unit_values(name):
    lines = (line.partition("=") for line in UNIT.read_text().splitlines() if not line.startswith("#"))
    return [value for key, _, value in lines if key == name]


def instructions():
    """(instruction, the rest) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in lines]


def parsed(words):
    """As the command reads them; SystemExit or ConfigError for what it does not know."""
    assert Path(words[0]).name == "penstock"
    return make_parser(words[1]).parse_args(words[1:])


def test_the_unit_starts_a_command_that_exists():
    (command,) = unit_values("ExecStart")
    options = parsed(shlex.split(command))

    assert options.verb == "serve"
    assert options.config == "/etc/penstock/serve.toml"
    (credential,) = unit_values("LoadCredential")
    assert options.api_key_file == "${CREDENTIALS_DIRECTORY}/" + credential.partition(":")[0]


def test_the_unit_waits_as_long_as_the_server_drains_and_starts_again_what_gave_up():
    (stop_s,) = unit_values("TimeoutStopSec")
    assert float(stop_s) >= Limits().drain_s + 2
    assert unit_values("Restart") == ["on-failure"]  # 70, where the engine was given up, is one
    assert unit_values("KillMode") == ["mixed"]  # SIGTERM is for the front end: it ends the engine itself
    assert unit_values("LimitCORE") == ["0"]  # a core would hold prompts


def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not here: the unit was only read, not verified")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/penstock/bin/penstock", sys.executable))
    done = subprocess.run(
        [verifier, "verify", "--man=no", copy], capture_output=True, text=True, timeout=60, check=False
    )
    if "Failed to" in done.stderr and "bus" in done.stderr:
        pytest.skip(f"systemd-analyze cannot run here: {done.stderr.strip()[:100]}")

    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_built_from_what_is_here_by_a_python_that_fits():
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest = tuple(map(int, re.search(r">=\s*([\d.]+)", python)[1].split(".")))
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]

    assert len(set(images)) == 1, "what is built for one Python runs on no other"
    assert tuple(map(int, re.search(r"python:([\d.]+)", images[0])[1].split("."))) >= lowest
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            source = rest.split()[0]
            assert (ROOT / source / "pyproject.toml").exists()
            assert (ROOT / source / "CMakeLists.txt").exists()
    built = next(rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    target = next(rest.split()[1] for word, rest in instructions() if word == "COPY")
    assert built.endswith(target)


def test_the_image_runs_as_nobody_in_particular():
    (user,) = (rest for word, rest in instructions() if word == "USER")
    made = next(rest for word, rest in instructions() if word == "RUN" and "useradd" in rest)

    assert user != "0"
    assert f"--uid {user}" in made
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_image_starts_a_command_that_exists_and_needs_a_key():
    (entry,) = (json.loads(rest) for word, rest in instructions() if word == "ENTRYPOINT")
    options = parsed([*entry, "penstock-tiny"])
    asked = read_fields(given_flags(options, ServerConfig), ServerConfig)

    assert options.model == "penstock-tiny"
    with pytest.raises(ConfigError, match="no API key"):
        bind(asked, Keys(()))
    (port,) = (rest for word, rest in instructions() if word == "EXPOSE")
    assert int(port) == asked.port
    assert {"STOPSIGNAL": "SIGTERM"}.items() <= dict(instructions()).items()


def test_the_image_says_whether_it_is_well(serve, scripted):
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    python, flag, code = shlex.split(check.removeprefix("CMD "))
    assert (python, flag) == ("python", "-c")
    engine = scripted()
    server = serve(engine, keys=("a-key-of-the-test",))

    def exit_code():
        here = code.replace(":8000", f":{server.port}")
        assert here != code
        return subprocess.call([sys.executable, "-c", here], stderr=subprocess.DEVNULL, timeout=60)

    assert exit_code() == 0
    engine.state = "draining"
    assert exit_code() == 1


def test_the_configuration_that_the_guide_shows_can_be_read(tmp_path):
    guide = (ROOT / "docs" / "guides" / "serving.md").read_text()
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    file = tmp_path / "serve.toml"
    file.write_text(shown)
    read = read_file(str(file))

    assert read["model"] == "penstock-tiny"
    assert read_fields(read["limits"], Limits) == Limits()
    read_fields(read["server"], ServerConfig)
