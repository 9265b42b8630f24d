"""What a user asks for -> Requests that the engine can run. All that can be refused is refused here.

Called by the engine's faces. Raises InvalidRequestError naming the parameter; nothing is clamped or cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from penstock.engine.pooling import check_pooling
from penstock.errors import ContextLengthError, InvalidRequestError
from penstock.model.generation import GenerationDefaults
from penstock.request import Request, SamplingParams
from penstock.sampling.params import bad_word_ids, check, seeds_of
from penstock.text.tokenizer import Tokenizer

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def default_params(defaults: GenerationDefaults) -> SamplingParams:
    """The sampling that the checkpoint's authors suggest; ours where they do not say."""
    said = {name: getattr(defaults, name) for name in SAMPLING_DEFAULTS}
    return SamplingParams(**{name: value for name, value in said.items() if value is not None})


def eos_ids_of(defaults: GenerationDefaults, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: those the checkpoint names; its tokenizer's where it names none."""
    tokenizer_eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return frozenset(defaults.eos_token_ids or tokenizer_eos)


@dataclass(frozen=True, slots=True)
class Terms:
    """What admission decided about one call: a seed for each of `n` by index, 0 has the seed itself."""

    seeds: tuple[int, ...]
    max_output_tokens: int
    stop_ids: frozenset[int]
    bad_token_ids: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Admission:
    """Facts of the model that requests are checked against. `seed` seeds the requests that bring none."""

    tokenizer: Tokenizer
    vocab_size: int
    max_context: int
    eos_ids: frozenset[int]
    seed: int
    has_head: bool = True  # False: an encoder
    _num_drawn: int = field(default=0, init=False)
    _last_arrival_s: float = field(default=float("-inf"), init=False)

    def admit(
        self,
        request_id: str,
        prompt_tokens: Sequence[int],
        params: SamplingParams,
        *,
        arrival_s: float,
        priority: int = 0,
        cache_salt: str = "",
        output_tokens: Sequence[int] = (),
        pooling: str = "",
    ) -> list[Request]:
        """One Request per `n`, in order of their index; index 0 has the seed itself (DESIGN.md 9.20).

        `output_tokens` were emitted before a restart: the request goes on after them.
        """
        terms = self.judge(prompt_tokens, params, pooling=pooling)
        prompt = tuple(prompt_tokens)
        return [
            Request(
                request_id=request_id if params.n == 1 else f"{request_id}/{index}",
                prompt_tokens=prompt,
                params=params,
                seed=one_seed,
                arrival_s=self.next_arrival_s(arrival_s),
                max_output_tokens=terms.max_output_tokens,
                stop_ids=terms.stop_ids,
                priority=priority,
                cache_salt=cache_salt,
                bad_token_ids=terms.bad_token_ids,
                output_tokens=list(output_tokens),
                pooling=pooling,
            )
            for index, one_seed in enumerate(terms.seeds)
        ]

    def judge(self, prompt_tokens: Sequence[int], params: SamplingParams, *, pooling: str = "") -> Terms:
        """Refuse the call, or say on what terms it runs. Draws a seed where it brings none."""
        if pooling:
            return self._judge_pooled(prompt_tokens, pooling)
        if not self.has_head:
            raise InvalidRequestError(
                "this model is an encoder: it makes embeddings and continues no text. Use embed(), penstock "
                "embed or /v1/embeddings, or load a model that generates.",
                param="model",
                code="no_generation",
            )
        check(params, self.vocab_size, self.max_context)
        self._check_prompt(prompt_tokens)
        max_output_tokens = self._max_output_tokens(len(prompt_tokens), params)
        seed = self._draw_seed() if params.seed is None else params.seed
        own = frozenset() if params.ignore_eos else self.eos_ids
        return Terms(
            seeds=tuple(seeds_of(seed, params.n)),
            max_output_tokens=max_output_tokens,
            stop_ids=own.union(params.stop_token_ids) if params.stop_token_ids else own,
            bad_token_ids=tuple(bad_word_ids(params, self._encode)),
        )

    def _judge_pooled(self, prompt_tokens: Sequence[int], pooling: str) -> Terms:
        """No token is drawn, so that a prompt may fill the context."""
        check_pooling(pooling)
        self._check_prompt(prompt_tokens)
        if len(prompt_tokens) > self.max_context:
            raise ContextLengthError(
                f"the text has {len(prompt_tokens):,} tokens; the context holds {self.max_context:,}. "
                "Shorten it or raise max_context.",
                param="input",
            )
        return Terms(seeds=(0,), max_output_tokens=1, stop_ids=frozenset(), bad_token_ids=())

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InvalidRequestError(
                "the prompt has no tokens, so there is nothing to continue; give at least one.",
                param="prompt",
            )
        for token in prompt:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise InvalidRequestError(
                    f"prompt token {token!r} is no id of this model; ids are 0 to {self.vocab_size - 1:,}.",
                    param="prompt",
                )

    def _max_output_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        room = self.max_context - num_prompt
        if room < 1:
            raise ContextLengthError(
                f"prompt has {num_prompt:,} tokens; the context holds {self.max_context:,} and one is "
                "needed for the answer. Shorten the prompt or raise max_context."
            )
        if params.min_tokens > room:
            raise ContextLengthError(
                f"prompt has {num_prompt:,} tokens and min_tokens={params.min_tokens:,} more are asked for; "
                f"the context holds {self.max_context:,}. Ask for at most {room:,}, or raise max_context."
            )
        if params.max_tokens is None:
            return room
        if params.max_tokens > room:
            raise ContextLengthError(
                f"prompt has {num_prompt:,} tokens and max_tokens={params.max_tokens:,} more are asked for; "
                f"the context holds {self.max_context:,}. Ask for at most {room:,}, or raise max_context."
            )
        return params.max_tokens

    def _draw_seed(self) -> int:
        """The same engine seed gives the same seeds in the same order."""
        self._num_drawn += 1
        words = f"{self.seed}:{self._num_drawn}".encode()
        return (
            int.from_bytes(blake2b(words, digest_size=8).digest(), "little") >> 1
        )  # fits a signed 64-bit field

    def next_arrival_s(self, now_s: float) -> float:
        """Strictly increasing: first come, first served has no ties."""
        self._last_arrival_s = max(now_s, self._last_arrival_s + 1e-6)
        return self._last_arrival_s

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False)
