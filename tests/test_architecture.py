"""The law of imports, counted budgets, and rules that only a walk over the syntax trees can keep."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "penstock"

HALL = {"errors", "config", "request", "step", "registry", "env", "event_log"}  # nouns every room may use
MAY_IMPORT = {  # besides the hall; a dotted entry opens one file and no more
    "api": "engine.async_engine engine.serving text fleet",
    "fleet": "engine planner",
    "engine": "backends kv model offload parallel planner sampling scheduler speculation text weights",
    "text": "",
    "scheduler": "kv.manager",
    "speculation": "ops sampling",
    "parallel": "model.program ops",
    "offload": "kv model.program weights",
    "compress": "backends model ops sampling weights",
    # weights.loader and weights.arena: an executor holds what was loaded, and reserves its own pools
    "backends": "kv.codec model.program ops planner.machine sampling "
    "weights.arena weights.format weights.loader",
    "planner": "kv model ops",
    "kv": "model.spec ops.rounding",  # a codec's bytes stand for the values that rounding defines
    "sampling": "ops",
    "model": "ops weights.format",
    "weights": "",
    "ops": "",  # a contract does not know its kernels
    "hall": "",
}
ANYTHING = {"bench", "cli", "__init__"}  # and nothing imports them
ONLY_IN = {  # an outside package is known in one place
    "torch": "backends.cuda compress",
    "triton": "backends.cuda",
    "ray": "fleet parallel",
    "starlette": "api",
    "zmq": "engine",
    "tokenizers": "text",
    "jinja2": "text",
    "llguidance": "text",
    "huggingface_hub": "engine.locate",
    # engine.executors makes the pool that loading and running share
    "penstock._native": "backends.cpu weights kv.codecs sampling engine.build engine.executors",
}
NOT_IN = {"numpy": "api scheduler"}  # text only; plain integers only
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}  # code execution from data
# These differ between vendors or libraries
BREAKS_BITS = ("rcp14", "rsqrt14", "exp2a23", "std::exp(", "std::sin(", "std::log(")
MAX_CONFIG_FIELDS = 60
MAX_ENVIRONMENT_VARIABLES = 10
MAX_LINES = 400
LONG_FILES: dict[str, str] = {}  # path -> why it is one thing

MODULES = sorted(p for p in SOURCE.rglob("*.py") if "models" not in p.relative_to(SOURCE).parts[:1])


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Every imported name, inside functions and under TYPE_CHECKING too; relative imports are refused."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "penstock":
                yield from (f"penstock.{alias.name}" for alias in node.names)
            else:
                yield node.module


def inside(name: str, allowed: str) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in allowed.split())


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    module = module_of(path)
    room = module.split(".")[0]
    anything = room in ANYTHING
    allowed = " ".join([*HALL, room, "" if anything else MAY_IMPORT["hall" if room in HALL else room]])
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        outside = "penstock._native" if name.startswith("penstock._native") else top
        if outside == "penstock":
            assert anything or inside(rest, allowed), f"{module} may not import {rest}"
            assert room in ANYTHING or rest.split(".")[0] not in ANYTHING, f"nothing imports {rest}"
        assert anything or inside(module, ONLY_IN.get(outside, module)), f"{outside} is not for {module}"
        assert not inside(module, NOT_IN.get(top, "")), f"{top} is not for {module}"
        assert top not in FORBIDDEN, f"{top} can run code from data"


def test_rooms_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        room = module_of(path).split(".")[0]
        if room in HALL | ANYTHING:
            continue
        targets = {name.split(".")[1] for name in imports_of(path) if name.startswith("penstock.")}
        graph.setdefault(room, set()).update(targets - HALL - {room, "_native"})

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        for target in graph.get(room, ()):
            visit(target, (*path, room))

    for room in graph:
        visit(room, ())


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_files_are_one_thing(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())

    assert lines <= MAX_LINES or str(path.relative_to(ROOT)) in LONG_FILES


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))) or not path.read_text("utf-8").strip()


def test_options_stay_few() -> None:
    from penstock.config import EngineConfig

    assert len(EngineConfig.__struct_fields__) <= MAX_CONFIG_FIELDS


def test_environment_is_read_in_one_place() -> None:
    read = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                assert module_of(path) == "env", f"{module_of(path)} reads the environment; env.py does that"
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and module_of(path) == "env" and node.value.isupper() and "_" in node.value:
                read.add(node.value)

    assert 0 < len(read) <= MAX_ENVIRONMENT_VARIABLES


def test_serving_needs_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not any("torch" in d or "transformers" in d for d in project["dependencies"])


def test_no_native_kernel_uses_what_breaks_its_bits() -> None:
    for path in sorted((ROOT / "native").rglob("*.*")):
        text = path.read_text("utf-8")
        for word in BREAKS_BITS:
            assert word not in text, f"{path.name} uses {word}"
        if path.parent.name != "avx512bf16":  # the one room that feeds it pairs of one chain (ADR 6)
            assert "dpbf16_ps" not in text, f"{path.name} uses VDPBF16PS"
            assert '"vdpbf16ps' not in text, f"{path.name} uses VDPBF16PS"
