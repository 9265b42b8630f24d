"""`penstock batch IN OUT`: every request of one of OpenAI's batch files, answered as the server would.

IN has a JSON object per line: custom_id, method, url, body. OUT gets one per answer, in the order in which
they end. Stopped or killed, it goes on where it was when it is run again; a line that is no request gets an
error.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.errors import ConfigError, UnavailableError
from penstock.event_log import EventLog

if TYPE_CHECKING:
    from penstock.api.batch import BatchLine, LineAnswer
    from penstock.cli.batch_file import BatchFile

EMBEDDED = "penstock-tiny"
MAX_HELD = 1000  # lines that ask for nothing, before they are written
Work = tuple[int, bytes]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="JSON lines of custom_id, method, url and body")
    parser.add_argument("output", metavar="OUT", help="JSON lines of answers; what stands there is kept")
    parser.add_argument("--errors", metavar="FILE", help="where answers other than 200 go. Default: OUT")
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"a local folder, an embedded name or a Hugging Face id. Default: {EMBEDDED}",
    )
    parser.add_argument(
        "--model-name", metavar="NAME", help="what the requests call it. Default: the model's own name"
    )
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from penstock.cli.batch_file import BatchFile

    with ExitStack() as held:
        try:
            source = held.enter_context(Path(options.input).open("rb"))
        except OSError as error:
            raise ConfigError(f"{options.input}: {error.strerror}; give a file of JSON lines.") from None
        output = held.enter_context(BatchFile(options.output))
        errors = output if options.errors is None else held.enter_context(BatchFile(options.errors))
        total = sum(1 for line in source if line.strip())
        source.seek(0)
        batch = _Batch(source, output, errors, total)
        asyncio.run(batch.run(options))
    told = (
        f"{batch.num_answered:,} answered, {batch.num_refused:,} refused, {batch.num_skipped:,} from before."
    )
    print(told, file=sys.stderr)
    if batch.num_left:
        raise UnavailableError(
            f"{batch.num_left:,} lines were not answered: the engine took no more requests; run it again, it "
            "asks for them."
        )
    return 0


class _Batch:
    def __init__(self, source: BinaryIO, output: "BatchFile", errors: "BatchFile", total: int) -> None:
        self._source = source
        self._output = output
        self._errors = errors
        self._total = total
        self._advance: Callable[[int, int], None] = lambda _finished, _tokens: None
        self.num_answered = self.num_refused = self.num_skipped = self.num_left = 0

    async def run(self, options: argparse.Namespace) -> None:
        from penstock.api.app import make_app
        from penstock.api.context import Context
        from penstock.api.keys import Keys
        from penstock.config import ServerConfig
        from penstock.engine.async_engine import AsyncEngine
        from penstock.engine.progress import show_progress
        from penstock.engine.serving import Limits

        limits = Limits(total_s=1e9, queue_wait_s=1e6)  # nobody waits at the other end
        log = EventLog()
        config = ServerConfig(model_name=options.model_name, log_requests=False)
        engine = await AsyncEngine.start(options.model, engine_config(options), limits, log=log)
        try:
            app = make_app(Context(config, Keys(()), log, limits, loaded=engine))
            width = 2 * int(engine.facts.plan["max_requests"])
            with show_progress(self._total, is_shown=True) as self._advance:
                answering = asyncio.ensure_future(self._answer_all(app, width))
                gone = asyncio.ensure_future(engine.wait_stopped())
                try:
                    await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done() and (failure := gone.result()) is not None:
                        raise failure
                    await answering
                finally:
                    answering.cancel()
                    gone.cancel()
                    await asyncio.gather(answering, gone, return_exceptions=True)
        finally:
            await engine.stop()
            log.close()

    async def _answer_all(self, app: "Callable[..., object]", width: int) -> None:
        from penstock.api.batch import BatchLine, answer

        lines = self._lines()
        running: set[asyncio.Task[LineAnswer | None]] = set()
        refused: list[LineAnswer] = []
        is_over = False
        try:
            while running or not is_over:
                while not is_over and len(running) < width and len(refused) < MAX_HELD:
                    line = next(lines, None)
                    if line is None:
                        is_over = True
                    elif isinstance(line, BatchLine):
                        running.add(asyncio.create_task(answer(app, line)))  # type: ignore[arg-type]  # starlette's
                    else:
                        refused.append(line)
                done: set[asyncio.Task[LineAnswer | None]] = set()
                if running:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                made = [one for task in done if (one := task.result()) is not None]
                self.num_left += len(done) - len(made)
                await asyncio.to_thread(self._keep, made, refused)  # a disk may take its time
                refused = []
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _lines(self) -> "Iterator[BatchLine | LineAnswer]":
        """Those that still have to be asked, and answers to what is no request."""
        from penstock.api.batch import NotALineError, read_line, refusal_of

        answered = self._output.answered | self._errors.answered
        judged = self._output.judged | self._errors.judged
        seen: set[str] = set()
        for number, text in enumerate(self._source, 1):
            if not text.strip():
                continue
            try:
                line = read_line(text)
                if line.custom_id in seen:
                    raise NotALineError(
                        "duplicate_custom_id", "an earlier line has this custom_id.", line.custom_id
                    )
            except NotALineError as error:
                if number in judged:
                    self._skip()
                else:
                    yield refusal_of(error, number)
                continue
            seen.add(line.custom_id)
            if line.custom_id in answered:
                self._skip()
            else:
                yield line

    def _skip(self) -> None:
        self.num_skipped += 1
        self._advance(1, 0)

    def _keep(self, answers: "list[LineAnswer]", refused: "list[LineAnswer]") -> None:
        """In a thread, one at a time. Whoever is cancelled meanwhile has them on the disk all the same."""
        good = [one for one in answers if one.response is not None and one.response.status_code == 200]
        bad = [one for one in answers if one not in good] + refused
        self._output.append(good)
        self._errors.append(bad)
        self.num_answered += len(good)
        self.num_refused += len(bad)
        self._advance(len(good) + len(bad), 0)
