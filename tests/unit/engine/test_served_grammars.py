"""A grammar through the whole serving path: proved beside the front end, built in the engine, replayed."""

import asyncio
import json
import os
import signal

import pytest

from penstock.backends.cpu.probe import isas
from penstock.config import EngineConfig
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.serving import Call, Limits
from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import SamplingParams, StructuredOutputsParams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not isas(), reason="this build has no native backend"),
]

SCHEMA = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 20, "maxItems": 24}},
    "required": ["words"],
    "additionalProperties": False,
}


async def answer(engine: AsyncEngine, *, kills: bool = False, **shape: object) -> tuple[str, str | None]:
    params = SamplingParams(
        max_tokens=300,
        seed=3,
        structured_outputs=StructuredOutputsParams(**shape),  # type: ignore[arg-type]
    )
    text, reason = "", None
    with engine.admit(100) as ticket:
        call = Call(request_id="r", prompt_tokens=[40, 41, 42], params=params)
        async with engine.stream(ticket, call) as news:
            async for output in news:
                text += output.outputs[0].text
                reason = output.outputs[0].finish_reason
                if kills and len(text) > 20:
                    kills = False
                    running = engine._supervisor.engine
                    assert running is not None
                    os.kill(running.process.pid, signal.SIGKILL)
    return text, reason


def test_grammars_are_proved_kept_and_go_on_after_the_engine_died() -> None:
    async def run() -> None:
        engine = await AsyncEngine.start("penstock-tiny", EngineConfig(), Limits())
        try:
            whole = await answer(engine, json=SCHEMA)

            assert whole[1] == "stop"
            assert set(json.loads(whole[0])["words"]) <= {"a", "b"}
            assert await answer(engine, json=SCHEMA, kills=True) == whole
            with pytest.raises(InvalidRequestError, match="unclosed"):
                await answer(engine, regex="[a-z")
            with pytest.raises(GrammarLimitError):
                await answer(engine, regex="(a+)+")
            with pytest.raises(GrammarLimitError):
                huge = {f"p{i}": {"type": "string"} for i in range(5_000)}
                await answer(engine, json={"type": "object", "properties": huge})
            assert engine.health().num_queued == 0
            assert await answer(engine, choice=("yes",)) == ("yes", "stop")
        finally:
            await engine.stop()

    asyncio.run(run())
