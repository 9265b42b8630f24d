"""The exception tree. Every error a user can cause is a PenstockError whose message is one line:
what happened (with the value), why that is a problem, what to do. Anything else is our own mistake.

    PenstockError
    ├── ConfigError          an option is unknown, absurd, or contradicts another
    ├── ModelNotFoundError   MODEL is no folder, no embedded name, no repository that can be reached
    ├── ModelLoadError       the checkpoint cannot be served; `code` says which of the known ways
    ├── InvalidRequestError  a prompt or sampling parameter is refused; `param` names it
    │   ├── ContextLengthError   prompt (+ what was asked) cannot fit
    │   └── GrammarLimitError    a grammar is larger, or costs more, than one request may ask for
    ├── OutOfMemoryError     the plan does not fit this machine; the numbers are in the message
    ├── BackendError         a backend or ISA was asked for that this build or machine lacks
    ├── EngineError          a broken invariant ended a step; the request was freed
    ├── UnavailableError     the server cannot do it now; `retry_after_s` says when to ask again
    │   ├── OverloadedError      the queue is full, or the request could not start in its time
    │   ├── ShuttingDownError    the server is draining
    │   ├── EngineRestartingError    the engine process died and this request was not replayed
    │   └── ModelLoadingError    the engine has never been ready yet
    ├── DeadlineError        the request's time is over
    ├── SlowReaderError      the client did not read its answer
    ├── RequestPoisonedError     this request ended the engine process twice; it is not run again
    └── GrammarDeadEndError      nothing that the answer's grammar allows can come next

What a server answers hangs on the class: `http_status`, `error_type` and `code` (docs/errors.md).
"""


class PenstockError(Exception):
    """Base of everything a user may catch. `str(error)` is one line, fit to be printed as it is."""

    exit_code = 1
    http_status = 500
    error_type = "server_error"
    code = "internal_error"


class ConfigError(PenstockError):
    exit_code = 64


class ModelNotFoundError(PenstockError):
    exit_code = 66


class ModelLoadError(PenstockError):
    """`code` is one of reliability.md section 5: bad_header, truncated, missing_shard, bad_config ..."""

    exit_code = 65

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidRequestError(PenstockError):
    """`param` is the name of the offending parameter, as the user wrote it."""

    exit_code = 64
    http_status = 400
    error_type = "invalid_request_error"

    def __init__(self, message: str, *, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    def __init__(self, message: str, *, param: str = "prompt") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class GrammarLimitError(InvalidRequestError):
    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message, param=param, code="grammar_limit")


class OutOfMemoryError(PenstockError):
    exit_code = 71


class BackendError(PenstockError):
    exit_code = 69


class EngineError(PenstockError):
    exit_code = 70


class UnavailableError(PenstockError):
    """`retry_after_s`: when asking again is likely to be answered."""

    exit_code = 75
    http_status = 503
    code = "engine_overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    pass


class ShuttingDownError(UnavailableError):
    code = "shutting_down"


class EngineRestartingError(UnavailableError):
    code = "engine_restarting"


class ModelLoadingError(UnavailableError):
    code = "model_loading"


class DeadlineError(PenstockError):
    exit_code = 75
    http_status = 504
    code = "deadline_exceeded"


class SlowReaderError(PenstockError):
    """Nobody is there to read it: for the log."""

    exit_code = 75
    http_status = 499
    code = "slow_reader"


class RequestPoisonedError(PenstockError):
    exit_code = 70
    code = "request_poisoned"


class GrammarDeadEndError(PenstockError):
    exit_code = 70
    http_status = 400  # what was asked for contradicts itself: a grammar and allowed_token_ids, say
    error_type = "invalid_request_error"
    code = "grammar_dead_end"
