"""Any request, in any company and under any circumstances, gives the bytes that it gives alone.

Alone: one thread, the whole prompt in one step, nothing cached. A failure names the seeds that repeat it.
"""

import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import MODELS
from tests.exactness.drive import run_alone, run_mix
from tests.exactness.mixes import Circumstances, make_circumstances, make_mix


def check(engines, model, seed, *, num_asks, num_long, all_circumstances):
    loaded = engines(model)
    mix = make_mix(seed, vocab_size=loaded[1].spec.vocab_size, num_asks=num_asks, num_long=num_long)
    alone = run_alone(loaded[1], mix)
    runs = []
    for circumstances in all_circumstances:
        run = run_mix(loaded, mix, circumstances)
        different = differences(alone, run.outcomes)

        assert not different, f"{model}, mix {seed}, {circumstances}:\n" + "\n".join(different)
        runs.append(run)
    return runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_a_request_in_any_mix_gives_the_bytes_it_gives_alone(engines, model, seed):
    check(
        engines,
        model,
        seed,
        num_asks=(3, 8, 12, 20)[seed],
        num_long=seed % 2,
        all_circumstances=[make_circumstances(3 * seed + i) for i in range(3)],
    )
