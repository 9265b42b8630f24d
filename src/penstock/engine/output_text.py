"""Tokens of one request with stop strings -> text that may be shown, and the stop string that ends it.

The engine core runs one for each such request, to end it in the step of the hit, and sends the text along.
The text of all other requests is made where it is shown.
"""

from collections.abc import Sequence

import msgspec

from penstock.request import Request, SamplingParams
from penstock.step import RequestDelta
from penstock.text.detokenizer import Detokenizer
from penstock.text.stop import StopStrings
from penstock.text.tokenizer import Tokenizer


class OutputText:
    """Nothing of a stop string is given out, unless it is to be included. Stops count after `min_tokens`."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        stops = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
        self._detokenizer = Detokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._stops = StopStrings(stops, include=params.include_stop_str_in_output)
        self._num_unstoppable = params.min_tokens
        self.includes_stop = params.include_stop_str_in_output
        self.stop: str | None = None  # the stop string that was hit; feed no more
        self.untold = ""  # what became certain since last taken

    def feed(self, token: int) -> None:
        self._pass(self._detokenizer.feed((token,)))

    def finish(self) -> None:
        """No token follows: the rest is certain. May still find a stop string in it."""
        if self.stop is not None:
            return
        self._pass(self._detokenizer.flush())
        if self.stop is None:
            self.untold += self._stops.flush()

    def take(self) -> str:
        text, self.untold = self.untold, ""
        return text

    def _pass(self, text: str) -> None:
        if self._num_unstoppable > 0:
            self._num_unstoppable -= 1
        else:
            text, self.stop = self._stops.feed(text)
        self.untold += text


class StopFinder:
    """One OutputText per unfinished request that has stop strings: the scheduler's `find_stop`, and more."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, OutputText] = {}

    def begin(self, request: Request) -> None:
        """Before its first step. What a resumed request emitted earlier has been told."""
        if request.params.stop:
            text = self._texts[request.request_id] = OutputText(self._tokenizer, request.params)
            for token in request.output_tokens:
                text.feed(token)
            text.take()

    def __call__(self, request: Request) -> str | None:
        """The stop string completed by the latest output token. To be asked after each of them."""
        text = self._texts[request.request_id]
        text.feed(request.output_tokens[-1])
        return text.stop

    def complete(self, deltas: Sequence[RequestDelta]) -> Sequence[RequestDelta]:
        """The same deltas with their texts; one that ran out of tokens may meet a stop in its last bytes."""
        if not self._texts:
            return deltas
        return [self._completed(delta, self._texts.get(delta.request_id)) for delta in deltas]

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)

    def _completed(self, delta: RequestDelta, text: OutputText | None) -> RequestDelta:
        if text is None:
            return delta
        finish_reason, stop_reason = delta.finish_reason, delta.stop_reason
        if finish_reason is not None:
            if delta.ends_with_stop_id and text.includes_stop:
                text.feed(delta.tokens[-1])  # the id that ended it: nobody asked for its text before
            text.finish()
            if finish_reason == "length" and text.stop is not None:
                finish_reason, stop_reason = "stop", text.stop
        return msgspec.structs.replace(
            delta, text=text.take(), finish_reason=finish_reason, stop_reason=stop_reason
        )
