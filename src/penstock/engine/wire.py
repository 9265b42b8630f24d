"""What crosses between front end and engine process: msgpack arrays of typed structs, nothing else.

A frame is one struct of a closed union, so a frame that is anything else (garbage, a pickle, another
version's) decodes to None and is counted by the channel. Nothing is ever executed from data.
"""

from array import array
from collections.abc import Sequence

import msgspec

from penstock import errors
from penstock.config import EngineConfig, Plan
from penstock.engine.serving import ModelFacts
from penstock.errors import PenstockError
from penstock.request import GrammarSpec, Request, SamplingParams
from penstock.step import RequestDelta

VERSION = 3  # of everything below; both sides must say the same before anything else is believed


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Engine, first of all."""

    version: int
    pid: int


class Start(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Front end: load this. `name` is how the user calls it, `folder` where it is."""

    version: int
    name: str
    folder: str
    config: EngineConfig


class Ready(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Engine: loaded. `max_request_tokens` is what fits its memory if nobody else is there."""

    facts: ModelFacts
    plan: Plan
    eos_ids: tuple[int, ...]
    max_request_tokens: int
    notes: tuple[str, ...]


class Submit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Front end: run one admitted request, from where it is. Tokens are int32, little-endian."""

    request_id: str
    prompt: bytes
    output: bytes
    params: SamplingParams
    seed: int
    arrival_s: float
    max_output_tokens: int
    stop_ids: tuple[int, ...]
    priority: int
    cache_salt: str
    key_id: str
    bad_token_ids: tuple[tuple[int, ...], ...]
    num_scored_tokens: int
    grammar: GrammarSpec | None
    pooling: str


class Abort(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Front end: nobody wants these any more."""

    request_ids: tuple[str, ...]


class Stop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Front end: leave."""


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """Engine: what one step did, for everybody at once."""

    deltas: Sequence[RequestDelta]


class Fault(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """Engine: a typed error, of one request or (request_id "") of the load."""

    request_id: str
    kind: str
    message: str
    code: str
    param: str


Message = Hello | Start | Ready | Submit | Abort | Stop | Step | Fault

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(frame: bytes | memoryview) -> Message | None:
    """None: the frame is no message of this version."""
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def tokens_of(packed: bytes) -> list[int]:
    """The ids that `pack_tokens` packed. ValueError where the bytes are no whole number of them."""
    tokens = array("i")
    tokens.frombytes(packed)
    return tokens.tolist()


def pack_tokens(tokens: Sequence[int]) -> bytes:
    return (tokens if isinstance(tokens, array) else array("i", tokens)).tobytes()


def request_of(submit: Submit) -> Request:
    """The engine's own record of a submitted request."""
    return Request(
        request_id=submit.request_id,
        prompt_tokens=tuple(tokens_of(submit.prompt)),
        params=submit.params,
        seed=submit.seed,
        arrival_s=submit.arrival_s,
        max_output_tokens=submit.max_output_tokens,
        stop_ids=frozenset(submit.stop_ids),
        priority=submit.priority,
        cache_salt=submit.cache_salt,
        key_id=submit.key_id,
        bad_token_ids=submit.bad_token_ids,
        output_tokens=tokens_of(submit.output),
        num_scored_tokens=submit.num_scored_tokens,
        grammar=submit.grammar,
        pooling=submit.pooling,
    )


def fault_of(request_id: str, error: PenstockError) -> Fault:
    return Fault(
        request_id,
        type(error).__name__,
        str(error),
        str(getattr(error, "code", "")),
        str(getattr(error, "param", "")),
    )


def error_of(fault: Fault) -> PenstockError:
    """The same error on this side. A kind that this side does not know is an EngineError."""
    if fault.kind == "ModelLoadError":
        return errors.ModelLoadError(fault.code, fault.message)
    if fault.kind == "ContextLengthError":
        return errors.ContextLengthError(fault.message, param=fault.param)
    if fault.kind == "GrammarLimitError":
        return errors.GrammarLimitError(fault.message, param=fault.param)
    if fault.kind == "InvalidRequestError":
        return errors.InvalidRequestError(fault.message, param=fault.param, code=fault.code)
    plain = {
        kind.__name__: kind
        for kind in (
            errors.ConfigError,
            errors.ModelNotFoundError,
            errors.OutOfMemoryError,
            errors.BackendError,
        )
    }
    return plain.get(fault.kind, errors.EngineError)(fault.message)
