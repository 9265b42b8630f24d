"""The loop, on one screen: schedule, forward, update. `forward` is handed in: a fake is four lines.

Called by LLM or the engine process, from one thread. Reads no text; does not retry what an executor raises.
"""

import time
from collections.abc import Callable, Sequence

from penstock.engine.grammars import Grammars
from penstock.engine.inputs import InputBuilder
from penstock.engine.output_text import StopFinder
from penstock.errors import EngineError
from penstock.request import Request
from penstock.scheduler.scheduler import Scheduler
from penstock.step import RequestDelta, StepInput, StepOutput


class EngineCore:
    """Requests in, deltas out. `stops` and `grammars` follow the requests that have such, from begin to end.

    A step that raises has changed nothing that the next one would miss: computed tokens are counted only
    in `update`, so the same step can be asked for again, or its requests aborted.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        inputs: InputBuilder,
        forward: Callable[[StepInput], StepOutput],
        *,
        stops: StopFinder | None = None,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self._inputs = inputs
        self._forward = forward
        self._stops = stops
        self._grammars = grammars

    @property
    def has_requests(self) -> bool:
        return bool(self.scheduler.requests)

    def add_request(self, request: Request) -> None:
        """Queue an admitted request. Raises what `Scheduler.add` refuses."""
        self.scheduler.add(request)
        if self._stops is not None:
            self._stops.begin(request)
        if self._grammars is not None:
            self._grammars.begin(request)

    def abort(self, request_id: str) -> RequestDelta | None:
        """End a request in any state; its blocks are free now. None: it has ended before."""
        delta = self.scheduler.abort(request_id)
        self._end(request_id)
        return delta

    def step(self) -> Sequence[RequestDelta] | None:
        """Run one forward pass over what the scheduler chose.

        None: there is nothing to do. A list may be empty: prompts were read, no token is due yet, or all
        that is there waits for its grammar to be built.
        """
        if self._grammars is not None:
            self._grammars.settle(waits=self.has_requests and not self.scheduler.has_ready)
        schedule = self.scheduler.schedule(self.clock())
        if schedule is None:
            if self.scheduler.has_ready:
                raise EngineError("requests wait and none can run; this is a defect of penstock.")
            return [] if self.has_requests else None
        step_input, layout = self._inputs.build(schedule)
        output = self._forward(step_input)
        deltas: Sequence[RequestDelta] = self.scheduler.update(schedule, self._inputs.read(layout, output))
        if self._stops is not None:
            deltas = self._stops.complete(deltas)
        for delta in deltas:
            if delta.finish_reason is not None:
                self._end(delta.request_id)
        return deltas

    def _end(self, request_id: str) -> None:
        self._inputs.forget(request_id)
        if self._stops is not None:
            self._stops.forget(request_id)
        if self._grammars is not None:
            self._grammars.forget(request_id)
