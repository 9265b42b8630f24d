"""Experts that are read from disk as rows ask for them: the same bits, within the memory that was given."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.exactness.checkpoints import RMS, SHAPES, OwnShape, of_kind, write_checkpoint

from penstock import LLM, SamplingParams
from penstock.backends.cpu.executor import CpuExecutor
from penstock.errors import ModelLoadError, OutOfMemoryError
from penstock.ops.moe import expert_mlp
from penstock.weights import packed
from penstock.weights.loader import panel_bytes

pytest.importorskip("penstock._native", reason="this build has no native backend")

PROMPTS = [{"prompt_token_ids": [7 + (31 * i + j * j) % 400 for j in range(20 + 11 * i)]} for i in range(5)]
PARAMS = SamplingParams(max_tokens=8, temperature=0.9, seed=3, ignore_eos=True, logprobs=3)
SMALL = {"max_context": 256, "max_requests": 4, "memory_bytes": 32 << 20, "threads": 2, "seed": 1}
MIXTURES = ["mixtral", "qwen3_moe", "glm4_moe", "gpt_oss_mxfp4"]
WIDE = of_kind(  # 16 experts of 864 kB in each of three layers
    "Qwen3MoeForCausalLM",
    **RMS | {"hidden_size": 256, "num_hidden_layers": 3},
    num_experts=16,
    num_experts_per_tok=2,
    moe_intermediate_size=576,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(tmp_path: Path, shape: OwnShape) -> Callable[..., LLM]:
    folder = write_checkpoint(tmp_path / "model", shape)
    return lambda **options: LLM(str(folder), **SMALL | options)


def layer_bytes(llm: LLM) -> list[int]:
    """Packed experts of each layer."""
    found = []
    for call in llm.loaded.program.calls:
        if call.op is expert_mlp:
            uses = [llm.loaded.program.weights[str(call.inputs[i]).removeprefix("weights.")] for i in (2, 4)]
            found.append(sum(use.shape[0] // 32 * panel_bytes(str(use.format), use.shape[1]) for use in uses))
    return found


def answers(llm: LLM) -> list[object]:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(one.token_ids, one.logprobs) for answer in outputs for one in answer.outputs]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_on_disk_draw_what_experts_in_memory_draw(tmp_path, name):
    shape = SHAPES[name]
    assert isinstance(shape, OwnShape)
    model = make(tmp_path, replace(shape, own=shape.own | {"num_hidden_layers": 4}))
    whole = model()
    expected, sizes = answers(whole), layer_bytes(whole)
    count = whole.loaded.plan.resident_experts
    top_k = next(c.attrs["top_k"] for c in whole.loaded.program.calls if c.op.name == "route")
    for resident in (top_k, top_k + 1):
        llm = model(expert_bytes=max(sizes) + -(-sum(sizes) * resident // count))
        assert llm.loaded.plan.resident_experts == resident

        assert answers(llm) == expected
        executor = llm.loaded.executor
        assert isinstance(executor, CpuExecutor)
        counts = executor.residency()
        assert len(counts) == len(sizes)
        assert (counts[:, 1] >= resident).all(), "an expert that was never read cannot be here"
        assert (counts[:, 2] <= counts[:, 1]).all()
        assert not counts[0, 2], "nothing is known before the first layer"
        assert counts[1:, 2].any(axis=0), "some that the next layer read were foreseen"
    assert whole.loaded.fingerprint == llm.loaded.fingerprint


def mapped_bytes() -> int:
    """Memory that this process has of packed files."""
    total, is_packed = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_packed = "/packed/" in line
        elif is_packed and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """The most that was there at any time, looked at all the while."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            peak.append(mapped_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    yield
    is_over.set()
    watcher.join()


@pytest.mark.slow
def test_no_more_than_the_memory_asked_for_is_taken(tmp_path):
    model = make(tmp_path, WIDE)
    sizes = layer_bytes(model())
    gc.collect()
    assert sum(sizes) > 35e6
    budget = max(sizes) + sum(sizes) * 4 // 16
    peak: list[int] = []
    llm = model(expert_bytes=budget)
    assert llm.loaded.plan.resident_experts == 4
    before = mapped_bytes()  # what reading the file's header brought
    with watched(peak):
        answers(llm)

    slack = before + 3 * 2 * 17 * 4096  # and pages that experts share
    assert sum(sizes) / 4 <= max(peak) <= budget + slack < sum(sizes)
    assert mapped_bytes() <= sum(sizes) / 4 + slack, "a layer that is done keeps what it may keep"


@pytest.mark.slow
def test_a_first_start_packs_into_the_file_and_the_second_reads_it(tmp_path):
    model = make(tmp_path, WIDE)
    budget = 30 << 20
    first = model(expert_bytes=budget)
    expected = answers(first)
    (path,) = (tmp_path / "cache" / "penstock" / "packed").iterdir()
    made = path.stat().st_ino
    del first
    gc.collect()

    second = model(expert_bytes=budget)
    assert path.stat().st_ino == made
    assert answers(second) == expected
    whole = model()  # and one that has room reads the same file
    assert path.stat().st_ino == made
    assert answers(whole) == expected
    assert mapped_bytes() < sum(layer_bytes(whole))


def test_what_cannot_fit_is_refused_with_the_numbers(tmp_path):
    model = make(tmp_path, WIDE)
    with pytest.raises(OutOfMemoryError, match=r"the 2 of a row in each layer.*expert_bytes"):
        model(expert_bytes=1 << 20)
    with pytest.raises(OutOfMemoryError, match="Leave pack_cache on"):
        model(expert_bytes=20 << 20, pack_cache=False)
    with pytest.raises(OutOfMemoryError, match="reference backend holds all"):
        model(expert_bytes=20 << 20, backend="reference")


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    def full(descriptor: int, at: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed.os, "posix_fallocate", full)
    model = make(tmp_path, WIDE)
    with pytest.raises(ModelLoadError, match="must be kept on disk") as caught:
        model(expert_bytes=20 << 20)
    assert caught.value.code == "io_error"
    assert list((tmp_path / "cache" / "penstock" / "packed").iterdir()) == []
