"""`penstock serve`, mistaken: one line that says what and where, the right exit code, nothing started."""

import re
import socket

import pytest

from penstock.cli.main import main

CONFIGS = {  # name -> (text, what the line says)
    "a key that is none": ("[limits]\nquued = 3\n", "table limits: unknown option 'quued'"),
    "a key of another spelling": ("[engine]\nmax_contxt = 5\n", "table engine: .*Did you mean 'max_context'"),
    "a table that is none": ("[srver]\nport = 1\n", "has 'srver'"),
    "a text for a number": ('[server]\nport = "x"\n', "table server: port is 'x'; it must be a whole number"),
    "below its bound": ("[limits]\ndrain_s = -5\n", "table limits: drain_s is -5; it must be a number >= 0"),
    "no TOML": ("[limits\n", "is no TOML"),
    "no text": (b"\xff\xfe", "is no TOML"),
    "a model that is a number": ("model = 3\n", "it may have model"),
}


def line_of(capsys):
    """What was said: one line on standard error, nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_says_what_nobody_knows(tmp_path, capsys, name):
    text, said = CONFIGS[name]
    file = tmp_path / "serve.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code = main(["serve", "--config", str(file)])
    line = line_of(capsys)

    assert code == 64
    assert str(file) in line
    assert re.search(said, line)


def test_a_configuration_that_is_not_there(tmp_path, capsys):
    for place, why in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        assert main(["serve", "--config", str(place)]) == 64
        assert why in line_of(capsys)


def test_a_model_that_is_not_there(capsys, tmp_path):
    for model in ("no-such-model", str(tmp_path / "nowhere")):
        assert main(["serve", model, "--port", "0"]) == 66
        assert "is no folder, no embedded model" in line_of(capsys)


def test_a_port_that_somebody_has(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 64
    assert f"port {port} (Address already in use)" in line_of(capsys)


def test_a_door_without_a_lock(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 64
    assert "no API key" in line_of(capsys)
    assert main(["serve", "--api-key-file", str(tmp_path / "none")]) == 64
    assert "No such file" in line_of(capsys)
    monkeypatch.setenv("PENSTOCK_API_KEY", "")
    assert main(["serve"]) == 64
    assert "is set but empty" in line_of(capsys)
