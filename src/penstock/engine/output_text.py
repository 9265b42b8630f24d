"""Tokens of one request -> text that may be shown, and the stop string that ends it.

The engine runs one for each request with stop strings, to end it in the step of the hit; a face runs one for
every request. Both see the same tokens, so both decide alike.
"""

from penstock.request import Request, SamplingParams
from penstock.text.detokenizer import Detokenizer
from penstock.text.stop import StopStrings
from penstock.text.tokenizer import Tokenizer


class OutputText:
    """Nothing of a stop string is given out, unless it is to be included. Stops count after `min_tokens`."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        stops = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
        self._detokenizer = Detokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._stops = StopStrings(stops, include=params.include_stop_str_in_output) if stops else None
        self._num_unstoppable = params.min_tokens
        self.stop: str | None = None  # the stop string that was hit; feed no more

    def feed(self, token: int) -> str:
        """The text that became certain with this token."""
        return self._pass(self._detokenizer.feed((token,)))

    def finish(self) -> str:
        """The rest, once no token follows. May still find a stop string in it."""
        if self.stop is not None:
            return ""
        text = self._pass(self._detokenizer.flush())
        if self._stops is not None and self.stop is None:
            text += self._stops.flush()
        return text

    def _pass(self, text: str) -> str:
        if self._stops is None:
            return text
        if self._num_unstoppable > 0:
            self._num_unstoppable -= 1
            return text
        text, self.stop = self._stops.feed(text)
        return text


class StopFinder:
    """The scheduler's `find_stop`, with one OutputText per request that has stop strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, OutputText] = {}

    def __call__(self, request: Request) -> str | None:
        """The stop string completed by the latest output token. To be asked after each of them."""
        text = self._texts.get(request.request_id)
        if text is None:
            text = self._texts[request.request_id] = OutputText(self._tokenizer, request.params)
            for token in request.output_tokens[:-1]:  # a resumed request begins with what was emitted before
                text.feed(token)
        text.feed(request.output_tokens[-1])
        return text.stop

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)
