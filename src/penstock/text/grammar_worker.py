"""The process that tries a grammar before the engine sees it: `python -m penstock.text.grammar_worker`.

Started by `grammar_prover`. Reads a Vocabulary, then GrammarSpecs, each framed by its length, and answers
each with a Verdict. Every grammar is compiled in a child of its own, under limits of the kernel, so that no
grammar outlives its second, keeps its memory, or takes the worker with it.
"""

import os
import resource
import signal
import sys

import msgspec

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.grammar_compiler import GrammarCompiler, most_bytes
from penstock.text.grammar_wire import Verdict, Vocabulary, frame_of, read_frame

MAX_CPU_S = 1


def main() -> int:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    frame = read_frame(stdin)
    if frame is None:
        return 0
    compiler = GrammarCompiler(msgspec.msgpack.decode(frame, type=Vocabulary))
    stdout.write(frame_of(Verdict()))
    stdout.flush()
    while (frame := read_frame(stdin)) is not None:
        verdict = tried(compiler, msgspec.msgpack.decode(frame, type=GrammarSpec))
        stdout.write(frame_of(verdict))
        stdout.flush()
    return 0


def tried(compiler: GrammarCompiler, spec: GrammarSpec) -> Verdict:
    """What a child of this process makes of the grammar; a child that dies was over a limit."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _limit_this_process(most_bytes(spec))
        verdict = _compiled(compiler, spec)
        os.write(writer, msgspec.msgpack.encode(verdict))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(pid, 0)
    if status == 0 and answer:
        return msgspec.msgpack.decode(answer, type=Verdict)
    return Verdict(
        f"costs more than {MAX_CPU_S} s of CPU time or {most_bytes(spec) >> 20} MiB to compile",
        is_limit=True,
    )


def _compiled(compiler: GrammarCompiler, spec: GrammarSpec) -> Verdict:
    try:
        compiler.compile(spec, param="it")
    except GrammarLimitError as error:
        return Verdict(str(error), is_limit=True)
    except InvalidRequestError as error:
        return Verdict(str(error))
    except MemoryError:
        return Verdict(f"takes more than {most_bytes(spec) >> 20} MiB to compile", is_limit=True)
    return Verdict()


def _limit_this_process(max_bytes: int) -> None:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # after a fork, as little as can be
        pages = int(file.read().split()[0])
    num_bytes = pages * resource.getpagesize() + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    os.close(sys.stdin.fileno())


if __name__ == "__main__":
    sys.exit(main())
