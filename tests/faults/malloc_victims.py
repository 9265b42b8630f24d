"""`python -m tests.faults.malloc_victims NAME DENSE SPARSE`, with failing_malloc.c before the C library.

Does one piece of work again and again, each time in a child of its own, in which one allocation fails: the
first, the second, ... the DENSE-th, then SPARSE more at even distances. Prints how each child ended, as JSON.
A child that is alive afterwards must do the same work again, with nothing failing.
"""

import ctypes
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from penstock.config import EngineConfig
from penstock.engine.assemble import make_core
from penstock.engine.build import load_model
from penstock.engine.llm import LLM
from penstock.engine.locate import locate
from penstock.engine.wire import Submit, decode, encode, pack_tokens
from penstock.errors import OutOfMemoryError
from penstock.request import GrammarSpec, SamplingParams
from penstock.text import grammar_worker
from penstock.text.grammar_compiler import GrammarCompiler
from penstock.text.grammar_tokens import vocabulary_of
from penstock.text.tokenizer import Tokenizer
from penstock.weights.gguf_file import read_gguf
from penstock.weights.readers.safetensors import SafetensorsReader

SHIM = ctypes.CDLL(None)
NEVER = 2**62
VOCAB_SIZE = 8192
TEXT = "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n" * 4
SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","y"]}},"required":["a"]}'
TINY = {"backend": "cpu", "threads": 1, "max_context": 128, "max_requests": 2, "pack_cache": False, "seed": 1}
SAYS_SO = ("Cannot allocate memory", "can't allocate")  # CPython, where it does not raise MemoryError
Work = Callable[[], Any]


def tokenizer() -> Tokenizer:
    return Tokenizer.load(locate("penstock-tiny", None), VOCAB_SIZE)


def safetensors() -> Work:
    folder = locate("penstock-tiny", None)
    return lambda: sorted(SafetensorsReader.read(folder).tensors)


def gguf() -> Work:
    from tests.fakes.gguf_model import write_gguf

    path = Path(tempfile.mkdtemp()) / "tiny.gguf"
    write_gguf(locate("penstock-tiny", None), path, lambda name: "Q8_0")
    return lambda: sorted(read_gguf(path).tensors)


def tokenizer_file() -> Work:
    return lambda: tokenizer().vocab_size


def tokenizing() -> Work:
    made = tokenizer()
    return lambda: made.encode(TEXT, add_special=True)


def detokenizing() -> Work:
    made = tokenizer()
    ids = made.encode(TEXT, add_special=False)
    return lambda: made.decode(ids, skip_special=True)


def frame() -> Work:
    submit = Submit(
        request_id="1", prompt=pack_tokens(range(500)), output=b"", params=SamplingParams(), seed=1,
        arrival_s=0.0, max_output_tokens=4, stop_ids=(1,), priority=0, cache_salt="", key_id="",
        bad_token_ids=(), num_scored_tokens=0, grammar=None, pooling="",
    )  # fmt: skip
    return lambda: decode(encode(submit)) == submit


def make_compiler() -> GrammarCompiler:
    made = tokenizer()
    encode = partial(made.encode, add_special=False)
    return GrammarCompiler(vocabulary_of(made, VOCAB_SIZE, [1]), encode)


def grammar() -> Work:
    compiler = make_compiler()
    return lambda: compiler.compile(GrammarSpec("json_schema", SCHEMA), param="it") is not None


def grammar_in_the_worker() -> Work:
    """The allocation fails in the worker's child, where grammars are tried."""
    compiler, compiled = make_compiler(), grammar_worker._compiled
    at = ctypes.c_long.in_dll(SHIM, "failing_at")

    def fails_inside(*arguments: Any) -> Any:
        SHIM.arm_malloc(wanted)
        return compiled(*arguments)

    grammar_worker._compiled = fails_inside
    wanted = 0

    def work() -> Any:
        nonlocal wanted
        wanted, at.value = at.value, 0
        verdict = grammar_worker.tried(compiler, GrammarSpec("json_schema", SCHEMA))
        if verdict.is_limit:
            raise OutOfMemoryError(verdict.refusal)
        return verdict.refusal

    return work


def engine_init() -> Work:
    return lambda: make_core(load_model("penstock-tiny", EngineConfig(**TINY))) is not None


def step() -> Work:
    llm = LLM("penstock-tiny", **TINY)
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2)
    return lambda: llm.generate("def f(", params)[0].outputs[0].token_ids


VICTIMS = {
    make.__name__: make
    for make in (
        safetensors, gguf, tokenizer_file, tokenizing, detokenizing, frame, grammar, grammar_in_the_worker,
        engine_init, step,
    )
}  # fmt: skip


def ended(work: Work, at: int, want: Any) -> tuple[str, int, Any]:
    """(how, allocations, result) of a child in which allocation `at` fails. `want` None: not known yet."""
    reader, writer = os.pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 closed below
    pid = os.fork()
    if pid == 0:
        os.dup2(errors.fileno(), 2)
        how, result, num_calls = "right", None, 0
        SHIM.arm_malloc(at)
        try:
            result = work()
            num_calls = SHIM.disarm_malloc()
        except MemoryError:
            SHIM.disarm_malloc()
            how = "MemoryError"
        except OutOfMemoryError:
            SHIM.disarm_malloc()
            how = "OutOfMemoryError"
        except BaseException as error:
            SHIM.disarm_malloc()
            says_so = any(word in str(error) for word in SAYS_SO)
            how = "said so" if says_so else f"{type(error).__name__}: {error}"
        if want is not None:
            if how == "right" and result != want:
                how = "a wrong result"
            else:
                how += still_works(work, want)
        os.write(writer, json.dumps([how, num_calls, result]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(pid, 0)
    errors.seek(0)
    last_words = errors.read().decode(errors="replace").strip()
    errors.close()
    if answer:
        how, num_calls, result = json.loads(answer)
        return how, num_calls, result
    signal = os.waitstatus_to_exitcode(status)
    if signal == -6 and "memory allocation of" in last_words:
        return "aborted by Rust", 0, None
    return f"ended with {signal}: {last_words[-300:]}", 0, None


def still_works(work: Work, want: Any) -> str:
    try:
        return "" if work() == want else ", then a wrong result"
    except BaseException as error:
        return f", then {type(error).__name__}: {error}"


def places(num_calls: int, dense: int, sparse: int) -> Iterator[int]:
    yield from range(1, min(dense, num_calls) + 1)
    rest = num_calls - dense
    if rest > 0:
        yield from sorted({dense + 1 + rest * i // sparse for i in range(sparse)})


def main(name: str, dense: int, sparse: int) -> None:
    SHIM.arm_malloc.argtypes = [ctypes.c_long]
    SHIM.disarm_malloc.restype = ctypes.c_long
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = VICTIMS[name]()
    how, num_calls, want = ended(work, NEVER, None)
    assert how == "right", how
    endings: dict[str, int] = {}
    for at in places(num_calls or dense, dense, sparse):
        how, _, _ = ended(work, at, want)
        endings[how] = endings.get(how, 0) + 1
    print(json.dumps({"allocations": num_calls, "endings": endings}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
