import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.engine import locate as room
from penstock.engine.locate import cached_models, embedded_models, locate
from penstock.errors import ModelNotFoundError


def refusal(model: str, *words: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        locate(model)
    line = str(caught.value)

    assert line.isprintable()
    assert all(word in line for word in words), line
    return line


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two models and a folder that is none."""
    folder = tmp_path / "package"
    for name in ("penstock-tiny", "penstock-small"):
        make_model(folder / name)
    (folder / "leftover").mkdir()
    monkeypatch.setattr(room, "EMBEDDED", folder)
    return folder


def test_the_package_embeds_a_model() -> None:
    assert (embedded_models()["penstock-tiny"] / "tokenizer.json").exists()


def test_an_embedded_model_is_found_by_name(embedded: Path) -> None:
    assert locate("penstock-tiny") == embedded / "penstock-tiny"
    assert sorted(embedded_models()) == ["penstock-small", "penstock-tiny"]


def test_a_near_miss_names_the_model_that_was_meant(embedded: Path) -> None:
    refusal("penstok-tiny", "did you mean 'penstock-tiny'?")
    refusal("something else", "embedded models: penstock-small, penstock-tiny")
    refusal("", "embedded models")


def test_a_folder_goes_before_every_other_meaning(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_model(tmp_path / "owner" / "name")
    make_model(tmp_path / "penstock-tiny")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert locate(str(folder)) == folder
    assert locate("owner/name") == Path("owner/name")
    assert locate("./owner/name") == Path("owner/name")
    assert locate("penstock-tiny") == Path("penstock-tiny")
    assert locate("~/owner/name") == folder


def test_a_folder_without_a_config_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")

    refusal(str(tmp_path), "no config.json")
    refusal(str(tmp_path / "x.bin"), "is no .gguf file", "folder")


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./owner/name", "../a/b", "~nobody-here/x", "a/b/c", "a b/c", "x\x00y",
              "x" * 5000, "https://example.com/a/b", "-a/b", "a/b\n"]
)  # fmt: skip
def test_what_can_be_no_id_never_reaches_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(room, "_from_hub", fail)
    refusal(model, "no folder")


def test_snapshots_on_disk_are_listed_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    old = make_model(tmp_path / "models--org--a--b" / "snapshots" / "1")
    new = make_model(tmp_path / "models--org--a--b" / "snapshots" / "2")
    os.utime(old, (1, 1))
    (tmp_path / "models--org--empty" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "datasets--org--x" / "snapshots").mkdir(parents=True)

    assert cached_models() == {"org/a--b": new}


# The hub, as far as a download needs it. huggingface_hub reads its environment when it is imported, so that
# each case is a process of its own.

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors": b"weights",
    "consolidated.safetensors": b"the same weights",
    "original/model.safetensors": b"again",
    "pytorch_model.bin": b"a pickle",
    "evil.py": b"raise SystemExit('ran')",
    "README.md": b"text",
}


class Hub(BaseHTTPRequestHandler):
    """org/good has the files; org/gated asks for a token; org/bare has no config; org/broken fails."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        parts = self.path.lstrip("/").split("/")
        if parts[:2] == ["api", "models"] and "tree" in parts:
            names = [name for name in FILES if "good" in self.path or name != "config.json"]
            tree = [
                {"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40} for name in names
            ]
            self._answer(200, json.dumps(tree).encode())
        elif parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif "resolve" in parts:
            name = "/".join(parts[4:])
            self._answer(
                200, FILES[name], {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha256(FILES[name]).hexdigest()}
            )
        else:
            self._answer(404, b"")

    def _info(self, model: str, revision: str) -> None:
        if model == "org/gated":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif model == "org/broken":
            self._answer(400, b"{}", {})
        elif model not in ("org/good", "org/bare"):
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            names = [name for name in FILES if model == "org/good" or name != "config.json"]
            siblings = [{"rfilename": name} for name in names]
            self._answer(200, json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """(its address, what it was asked)."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import sys
from penstock.engine.locate import locate
from penstock.errors import ModelNotFoundError
for argument in sys.argv[1:]:
    model, _, revision = argument.partition("@")
    try:
        print(locate(model, revision or None))
    except ModelNotFoundError as error:
        print("refused:", error)
"""


def ask(tmp_path: Path, address: str, *models: str, offline: bool = False) -> list[str]:
    """One line for each of `models` (id or id@revision)."""
    environment = {
        "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path), "no_proxy": "*",
        "PYTHONPATH": ":".join(sys.path),
    }  # fmt: skip
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *models], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()

    assert len(lines) == len(models), done.stderr
    return lines


@pytest.mark.slow
def test_an_id_is_downloaded_once_and_only_what_is_needed(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    address, asked = hub
    first, pinned = ask(tmp_path, address, "org/good", f"org/good@{COMMIT}")
    folder = Path(first)

    assert first == pinned
    assert sorted(path.name for path in folder.rglob("*")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    num_files = sum(line.startswith("GET") and "resolve" in line for line in asked)

    assert num_files == 3
    assert ask(tmp_path, address, "org/good") == [first]
    assert sum(line.startswith("GET") and "resolve" in line for line in asked) == num_files


@pytest.mark.slow
def test_what_is_on_disk_is_served_offline_and_nothing_else_is_asked_for(
    tmp_path: Path, hub: tuple[str, list[str]]
) -> None:
    address, asked = hub
    (folder,) = ask(tmp_path, address, "org/good")
    asked.clear()
    found, missing = ask(tmp_path, address, "org/good", "org/other", offline=True)

    assert found == folder
    assert missing.startswith("refused: org/other is not on this disk and HF_HUB_OFFLINE is set")
    assert asked == []


@pytest.mark.slow
def test_every_way_in_which_the_hub_says_no_is_one_line(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    address, _ = hub
    lines = ask(
        tmp_path, address, "org/wrong", "org/gated", "org/good@nowhere", "org/bare", "org/broken",
        "org/a..b", "org/x--y",
    )  # fmt: skip
    words = ["not on the hub", "gated", "no revision 'nowhere'", "no config.json", "cannot be reached",
             "no valid", "no valid"]  # fmt: skip

    assert all(line.startswith("refused: org/") for line in lines)
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * len(lines), lines


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (line,) = ask(tmp_path, "http://127.0.0.1:9", "org/good")

    assert line.startswith("refused: org/good is not on this disk and the hub cannot be reached")


def test_an_error_of_the_transport_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("connection reset\nwith details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refusal("org/good", "could not be downloaded (connection reset)")
