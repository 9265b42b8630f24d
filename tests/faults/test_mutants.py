"""Small mistakes, planted one at a time in a copy of the sources: the fast tests must notice each.

A mutant that no longer applies is out of date: rewrite it with the code it was made from.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/unit/kv",
    "tests/unit/scheduler",
    "tests/contracts/test_retention.py",
    "tests/contracts/test_policies.py",
    "tests/faults/test_allocator.py",
    "tests/property/test_scheduler_kv.py",
    "tests/property/test_key_shares.py",
    "tests/unit/engine/test_core.py",
    "tests/unit/engine/test_inputs.py",
    "tests/unit/engine/test_llm.py",
    "tests/unit/engine/test_output_text.py",
)
# An editable install would import the original: its finder is left out.
LAUNCH = """
import os, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(type(f), "__module__", "")]
import pytest, penstock
assert penstock.__file__.startswith(os.getcwd()), penstock.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""
MUTANTS = (  # file, code, what a tired hand would write
    (
        "kv/block_pool.py",
        "        self._num_users[block_id] -= 1\n",
        "        pass\n",
    ),
    (
        "kv/block_pool.py",
        "        self._num_users[block_id] += 1\n",
        "        pass\n",
    ),
    (
        "kv/eviction.py",
        "next(iter(queue))",
        "next(reversed(queue))",
    ),
    (
        "kv/eviction.py",
        "num_held = self.num_held(other) + (other == tenant)",
        "num_held = self.num_held(other)",
    ),
    (
        "kv/eviction.py",
        "queue, most = self._unused_of[other], num_held",
        "queue, most = self._unused_of[other], most",
    ),
    (
        "kv/block_pool.py",
        "        self._unused_cached.drop(block_id)\n",
        "        pass\n",
    ),
    (
        "kv/manager.py",
        "group.pool.take(request.key_id)\n                    if",
        "group.pool.take(request.cache_salt)\n                    if",
    ),
    (
        "kv/block_pool.py",
        "            self._is_cached[block_id] = 0\n        else",
        "            pass\n        else",
    ),
    (
        "kv/block_pool.py",
        "            self._on_evict(block_id)\n",
        "            pass\n",
    ),
    (
        "kv/block_pool.py",
        "range(num_blocks - 1, NULL_BLOCK, -1)",
        "range(num_blocks - 1, NULL_BLOCK - 1, -1)",
    ),
    (
        "kv/block_pool.py",
        "range(num_blocks - 1, NULL_BLOCK, -1)",
        "range(num_blocks - 2, NULL_BLOCK, -1)",
    ),
    (
        "kv/block_pool.py",
        "            self._unused_cached.remove(block_id)\n        self._num_users",
        "            pass\n        self._num_users",
    ),
    (
        "kv/block_pool.py",
        "        return len(self._free) + len(self._unused_cached)",
        "        return len(self._free)",
    ),
    (
        "kv/prefix_index.py",
        "(salt.encode(), extra.encode())",
        '(b"", extra.encode())',
    ),
    (
        "kv/prefix_index.py",
        "one.salt != other.salt or ",
        "",
    ),
    (
        "kv/prefix_index.py",
        "(salt.encode(), extra.encode())",
        '(salt.encode(), b"")',
    ),
    (
        "kv/prefix_index.py",
        "one.tokens != other.tokens or ",
        "",
    ),
    (
        "kv/prefix_index.py",
        "        one, other = one.parent, other.parent\n",
        "        return True\n",
    ),
    (
        "kv/prefix_index.py",
        "parent.key if parent is not None else bytes(KEY_BYTES)",
        "bytes(KEY_BYTES)",
    ),
    (
        "kv/prefix_index.py",
        "        digest.update(packed)\n",
        "",
    ),
    (
        "kv/prefix_index.py",
        "if block_id is None or not is_same(self._link_of[block_id], link):",
        "if block_id is None:",
    ),
    (
        "kv/prefix_index.py",
        "        if link.key in self._block_of:\n            return False\n",
        "",
    ),
    (
        "request.py",
        "        last = len(self.tokens) - 1\n",
        "        last = len(self.tokens)\n",
    ),
    (
        "kv/manager.py",
        "num_full = request.num_computed_tokens // self.block_size\n        if num_full > table",
        "num_full = -(-request.num_computed_tokens // self.block_size)\n        if num_full > table",
    ),
    (
        "kv/manager.py",
        "salt=request.cache_salt",
        'salt=""',
    ),
    (
        "kv/manager.py",
        "            for block_id in reversed(ids):",
        "            for block_id in ids:",
    ),
    (
        "kv/manager.py",
        "            for block_id in reversed(ids):",
        "            for block_id in reversed(ids[:-1]):",
    ),
    (
        "kv/manager.py",
        "        num_places = -(-end // self.block_size)",
        "        num_places = end // self.block_size",
    ),
    (
        "kv/manager.py",
        "        num_places = -(-end // self.block_size)",
        "        num_places = end // self.block_size + 1",
    ),
    (
        "kv/manager.py",
        "group.pool.num_free - group.num_unused(ids) < group.num_needed",
        "group.pool.num_free < group.num_needed",
    ),
    (
        "kv/manager.py",
        "                        self._release(users)\n                        return False",
        "                        return False",
    ),
    (
        "kv/manager.py",
        "            self._release(users)\n            raise",
        "            raise",
    ),
    (
        "kv/manager.py",
        "            self._stop_growing(table)\n            links",
        "            links",
    ),
    (
        "kv/manager.py",
        "        self._stop_growing(table)\n        for group",
        "        for group",
    ),
    (
        "kv/manager.py",
        "            reach = min(holes)",
        "            reach = min(holes) - 1",
    ),
    (
        "kv/manager.py",
        "len(request.tokens) + 1, most",
        "len(request.tokens), most",
    ),
    (
        "kv/manager.py",
        "- hit_blocks + group.num_unused(ids)",
        "- hit_blocks",
    ),
    (
        "kv/manager.py",
        "        self._links.pop(request.request_id, None)\n",
        "        pass\n",
    ),
    (
        "request.py",
        "self.num_scored_tokens < self.num_prompt_tokens - 1",
        "self.num_scored_tokens < self.num_prompt_tokens",
    ),
    (
        "request.py",
        "return min(last, self.num_scored_tokens)",
        "return min(last, self.num_scored_tokens + 16)",
    ),
    (
        "kv/manager.py",
        "min(end, len(request.tokens)) // self.block_size",
        "end // self.block_size",
    ),
    (
        "kv/manager.py",
        "room * self.block_size\n",
        "(room + 1) * self.block_size\n",
    ),
    (
        "kv/manager.py",
        "need += max(0, group.peak_blocks",
        "need += 0 * max(0, group.peak_blocks",
    ),
    (
        "kv/block_table.py",
        "            ids[place] = NULL_BLOCK\n",
        "            pass\n",
    ),
    (
        "kv/block_table.py",
        "        self.num_places = num_places\n        self._frozen = None",
        "        self.num_places = num_places",
    ),
    (
        "kv/block_table.py",
        "if block.place not in gone]\n        self._frozen = None",
        "if block.place not in gone]",
    ),
    (
        "kv/block_table.py",
        "self.num_committed = self.num_places",
        "self.num_committed = 0",
    ),
    (
        "kv/retentions/window.py",
        "num_tokens - self.window + 1",
        "num_tokens - self.window + 2",
    ),
    (
        "kv/retentions/window.py",
        "num_tokens - self.window + 1",
        "num_tokens - self.window",
    ),
    (
        "kv/retentions/window.py",
        "min(self.first_read(num_tokens, block_size), num_tokens // block_size - 1)",
        "self.first_read(num_tokens, block_size)",
    ),
    (
        "kv/retentions/window.py",
        "behind = max(1, ",
        "behind = max(0, ",
    ),
    (
        "kv/retentions/window.py",
        "-(-(self.window - 1) // block_size)",
        "-(-self.window // block_size)",
    ),
    (
        "kv/retentions/state.py",
        "(num_tokens - 1) // block_size",
        "num_tokens // block_size",
    ),
    (
        "kv/retentions/state.py",
        "held[:-1]]",
        "held[:-2]]",
    ),
    (
        "kv/retentions/state.py",
        "min(2, ",
        "min(1, ",
    ),
    (
        "kv/group_pool.py",
        "self.fills_every_place or num_free < 1 else",
        "self.fills_every_place else",
    ),
    (
        "kv/group_pool.py",
        "[NULL_BLOCK] * (num_new - len(fresh)) + list(fresh)",
        "list(fresh) + [NULL_BLOCK] * (num_new - len(fresh))",
    ),
    (
        "kv/manager.py",
        "(place + 1) % self._checkpoint_blocks",
        "place % self._checkpoint_blocks",
    ),
    (
        "kv/manager.py",
        "(request.num_prompt_tokens - 1) // self.block_size - 1",
        "request.num_prompt_tokens // self.block_size - 1",
    ),
    (
        "kv/manager.py",
        "group.pool.num_free > len(self._tables)",
        "group.pool.num_free > 0",
    ),
    (
        "kv/manager.py",
        "not group.fills_every_place and not self._is_checkpoint(request, place)",
        "False",
    ),
    (
        "kv/block_table.py",
        " if ids[p] != NULL_BLOCK)\n",
        ")\n",
    ),
    (
        "scheduler/scheduler.py",
        "self._kv.has_states else ()",
        "False else ()",
    ),
    (
        "kv/retentions/window.py",
        "(step_tokens > 1)",
        "0",
    ),
    (
        "scheduler/scheduler.py",
        "self._running.values()\n            if not others",
        "reversed(self._running.values())\n            if not others",
    ),
    (
        "scheduler/scheduler.py",
        "        if self._waiting and not preempted:",
        "        if self._waiting:",
    ),
    (
        "scheduler/scheduler.py",
        "        if hit.is_growing:\n            return _Turn.PASSED",
        "        if hit.is_growing:\n            pass",
    ),
    (
        "scheduler/scheduler.py",
        "            return _Turn.NO_ROOM\n        if not self._kv.allocate",
        "            return _Turn.PASSED\n        if not self._kv.allocate",
    ),
    (
        "scheduler/scheduler.py",
        "num_to_serve=len(order) - index - 1",
        "num_to_serve=0",
    ),
    (
        "scheduler/scheduler.py",
        "                budget.refund(",
        "                (lambda *a, **k: 0)(",
    ),
    (
        "scheduler/scheduler.py",
        "            lost = chosen.pop(victim.request_id, None)",
        "            lost = None",
    ),
    (
        "scheduler/scheduler.py",
        "or request.num_computed_tokens != scheduled.start",
        "or False",
    ),
    (
        "scheduler/scheduler.py",
        "        request.num_computed_tokens = 0\n",
        "        pass\n",
    ),
    (
        "scheduler/scheduler.py",
        "        self._kv.free(request)\n        del self._running",
        "        del self._running",
    ),
    (
        "scheduler/scheduler.py",
        "        self._kv.free(request)\n        del self._requests",
        "        del self._requests",
    ),
    (
        "scheduler/scheduler.py",
        "            self._kv.commit(request)\n",
        "",
    ),
    (
        "scheduler/scheduler.py",
        ">= request.max_output_tokens",
        "> request.max_output_tokens",
    ),
    (
        "scheduler/scheduler.py",
        "request.max_output_tokens - 1  # the last",
        "request.max_output_tokens  # the last",
    ),
    (
        "scheduler/scheduler.py",
        "        self._waiting.discard(request.request_id)\n",
        "        pass\n",
    ),
    (
        "scheduler/scheduler.py",
        "        while self._waiting and len(self._running) < self._max_requests and budget.tokens > 0:",
        "        while self._waiting and budget.tokens > 0:",
    ),
    (
        "scheduler/scheduler.py",
        "                request.num_scored_tokens += len(result.prompt_logprobs)",
        "                pass",
    ),
    (
        "scheduler/scheduler.py",
        "len(scheduled.draft_tokens) + 1 - num_kept",
        "len(scheduled.draft_tokens) - num_kept",
    ),
    (
        "scheduler/scheduler.py",
        "request.num_cached_tokens = hit.num_tokens",
        "pass",
    ),
    (
        "scheduler/scheduler.py",
        "token if token in request.params.stop_token_ids else None",
        "token",
    ),
    (
        "scheduler/budget.py",
        "        self.tokens += num_tokens\n",
        "        pass\n",
    ),
    (
        "scheduler/budget.py",
        "            offer = min(offer, self.scored_rows)",
        "            pass",
    ),
    (
        "scheduler/policies/priority.py",
        "worth_s + request.arrival_s",
        "worth_s",
    ),
    (
        "scheduler/policies/fcfs.py",
        "return max(",
        "return min(",
    ),
    (
        "engine/inputs.py",
        "min(end, request.num_prompt_tokens - 1)",
        "min(end, request.num_prompt_tokens)",
    ),
    (
        "engine/inputs.py",
        "max(start, request.num_scored_tokens)",
        "start",
    ),
    (
        "engine/inputs.py",
        "    row.position = len(request.output_tokens)\n",
        "",
    ),
    (
        "engine/inputs.py",
        "if slot.block_ids is not scheduled.block_ids:",
        "if not slot.block_ids:",
    ),
    (
        "engine/inputs.py",
        "len(output_tokens) < request.params.min_tokens",
        "len(output_tokens) <= request.params.min_tokens",
    ),
    (
        "engine/inputs.py",
        "            self._free_slots.append(slot.index)",
        "            pass",
    ),
    (
        "engine/output_text.py",
        "            self._num_unstoppable -= 1\n",
        "            pass\n",
    ),
    (
        "engine/output_text.py",
        "            for token in request.output_tokens:\n",
        "            for token in request.output_tokens[:-1]:\n",
    ),
    (
        "engine/core.py",
        "                self._end(delta.request_id)\n",
        "                pass\n",
    ),
    (
        "engine/core.py",
        "        self._inputs.forget(request_id)\n",
        "        pass\n",
    ),
    (
        "engine/admission.py",
        "room < 1",
        "room < 0",
    ),
    (
        "engine/admission.py",
        "params.max_tokens > room",
        "params.max_tokens > room + 1",
    ),
    (
        "engine/answer.py",
        "            shown = shown[:-1]\n",
        "            pass\n",
    ),
    (
        "engine/llm.py",
        "                        self.core.abort(request.request_id)\n",
        "                        pass\n",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Sources and tests in a folder of their own, without weights and native code."""
    folder = tmp_path_factory.mktemp("mutants")
    ignore = shutil.ignore_patterns("*.safetensors", "*.so", "__pycache__", "goldens", "fixtures")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def fast_tests(folder):
    return subprocess.run(
        [sys.executable, "-c", LAUNCH, "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *TESTS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_without_a_mutant_the_fast_tests_pass(copy):
    run = fast_tests(copy)

    assert run.returncode == 0, run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "mutant"), MUTANTS)
def test_the_fast_tests_notice_the_mutant(copy, name, code, mutant):
    path = copy / "src" / "penstock" / name
    whole = path.read_text("utf-8")
    assert whole.count(code) >= 1, "the mutant no longer applies"
    path.write_text(whole.replace(code, mutant, 1), "utf-8")
    try:
        try:
            is_noticed = fast_tests(copy).returncode == 1
        except subprocess.TimeoutExpired:
            is_noticed = True  # a request that never ends is noticed, too
    finally:
        path.write_text(whole, "utf-8")

    assert is_noticed
