"""Trees of drafts in one step: verifying a node has the bytes of decoding it; an accepted path goes on so.

The judge is sequential decoding by the same executor: one token a step along each path of the tree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.contracts.test_executors import ATTENTIONS, cpu, native, program_of, reference
from tests.parity.steps import greedy_rows

from penstock.model.program import Program
from penstock.step import Executor, StepInput

BLOCK = 64
TABLE = np.array([[3, 1, 7, 5]], np.int32)
OTHER_TABLE = np.array([[2, 4, 6, 8]], np.int32)


@dataclass(frozen=True)
class Tree:
    """`parents[i]` is the row before row i; row 0 is the last token that is known."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def path(self, row: int) -> list[int]:
        rows = [row]
        while self.parents[rows[-1]] >= 0:
            rows.append(self.parents[rows[-1]])
        return rows[::-1]

    @property
    def depths(self) -> list[int]:
        return [len(self.path(row)) - 1 for row in range(len(self.tokens))]


def random_tree(seed: int, num_nodes: int, *, depth: int = 64) -> Tree:
    rng = np.random.default_rng(seed)
    parents, depths = [-1], [0]
    while len(parents) < num_nodes:
        parent = int(rng.integers(max(0, len(parents) - 4), len(parents)))
        if depths[parent] < depth:
            parents.append(parent)
            depths.append(depths[parent] + 1)
    return Tree(tuple(rng.integers(0, 96, num_nodes).tolist()), tuple(parents))


def step_of(
    tokens: Sequence[int],
    start: int,
    table: np.ndarray,
    *,
    tree: Tree | None = None,
    moves: np.ndarray | None = None,
) -> StepInput:
    count = len(tokens)
    positions = start + (np.arange(count) if tree is None else np.array(tree.depths))
    return StepInput(
        tokens=np.array(tokens, np.int32),
        positions=positions.astype(np.int32),
        query_start=np.array([0, count], np.int32),
        context_len=np.array([start + count], np.int32),
        block_tables=(table,),
        logit_rows=np.arange(count, dtype=np.int32),
        sampling=greedy_rows(count),
        taps=("logits",),
        parents=None if tree is None else np.array(tree.parents, np.int32),
        moves=() if moves is None else (moves,),
    )


def run(executor: Executor, *args, **kwargs) -> np.ndarray:
    return executor.forward(step_of(*args, **kwargs)).taps["logits"]


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 96, length).tolist()


def decoded(executor: Executor, start: int, tokens: Sequence[int]) -> np.ndarray:
    """Logits of `tokens` after a prompt of `start`, one step each."""
    run(executor, prompt(start), 0, OTHER_TABLE)
    return np.concatenate([run(executor, [token], start + i, OTHER_TABLE) for i, token in enumerate(tokens)])


def accept(tree: Tree, start: int, row: int) -> np.ndarray:
    """Moves that put the path to `row` into place."""
    slots = [(start + node, start + depth) for depth, node in enumerate(tree.path(row))]
    place = lambda slot: TABLE[0, slot // BLOCK] * BLOCK + slot % BLOCK  # noqa: E731
    return np.array([(place(a), place(b)) for a, b in slots if a != b], np.int32).reshape(-1, 2)


def check_tree(make: Callable[[], Executor], tree: Tree, start: int) -> None:
    """Every node equals decoding; then every leaf is accepted in turn and decoding goes on from it."""
    judge = make()
    leaves = sorted(set(range(len(tree.tokens))) - set(tree.parents))
    for leaf in leaves[:6]:
        path = tree.path(leaf)
        after = [11, 22, 33]
        expected = decoded(judge, start, [*(tree.tokens[row] for row in path), *after])
        executor = make()
        run(executor, prompt(start), 0, TABLE)
        got = run(executor, tree.tokens, start, TABLE, tree=tree)

        assert got[path].tobytes() == expected[: len(path)].tobytes()

        end = start + len(path)
        rest = [run(executor, after[:1], end, TABLE, moves=accept(tree, start, leaf))]
        rest += [run(executor, [token], end + 1 + i, TABLE) for i, token in enumerate(after[1:])]

        assert np.concatenate(rest).tobytes() == expected[len(path) :].tobytes()


STARTS = [1, 31, 40, 60, 63, 64, 127]  # trees within a block, across groups of 16 and 32, across blocks


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_a_node_has_the_bytes_of_decoding_it(kv_dtype: str, start: int) -> None:
    dtype = "float32" if kv_dtype == "float32" else "bfloat16"
    program = program_of(ATTENTIONS["plain"], dtype, kv_dtype=kv_dtype)
    check_tree(lambda: cpu(program), random_tree(start, 20), start)


@pytest.mark.parametrize("name", ["window, qk-norm", "sinks", "alibi", "seventy-one heads", "latents"])
def test_whatever_the_attention(name: str) -> None:
    program = program_of(ATTENTIONS[name], "bfloat16")
    check_tree(lambda: cpu(program, threads=2), random_tree(5, 24), 57)


@pytest.mark.parametrize("isa", [isa for isa in native.isas() if isa != native.best_isa()])
@pytest.mark.parametrize(
    ("name", "kv_dtype"), [(n, t) for n in ("sinks", "latents") for t in ("bfloat16", "int8")]
)
def test_on_every_instruction_set(name: str, kv_dtype: str, isa: str) -> None:
    program = program_of(ATTENTIONS[name], "bfloat16", kv_dtype=kv_dtype)
    tree = random_tree(7, 16)
    check_tree(lambda: cpu(program, isa=isa), tree, 55)
    run_all = [run_prompt_and_tree(cpu(program, isa=one), tree, 55) for one in (isa, native.best_isa())]

    assert run_all[0].tobytes() == run_all[1].tobytes()


def run_prompt_and_tree(executor: Executor, tree: Tree, start: int) -> np.ndarray:
    run(executor, prompt(start), 0, TABLE)
    return run(executor, tree.tokens, start, TABLE, tree=tree)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_a_node_of_latents_has_the_bytes_of_decoding_it(kv_dtype: str, start: int) -> None:
    dtype = "float32" if kv_dtype == "float32" else "bfloat16"
    program = program_of(ATTENTIONS["latents"], dtype, kv_dtype=kv_dtype)
    check_tree(lambda: cpu(program, threads=2), random_tree(start, 16), start)


@pytest.mark.parametrize("name", ["plain", "latents"])
def test_across_the_end_of_a_split_of_512(name: str) -> None:
    table = np.arange(1, 11, dtype=np.int32)[None]
    program = program_of(ATTENTIONS[name], "bfloat16", max_context=640)
    for start in (500, 511):
        tree = random_tree(start, 24)
        executor = cpu(program, num_blocks=24)
        tokens = prompt(start)
        run(executor, tokens, 0, table)
        got = run(executor, tree.tokens, start, table, tree=tree)
        for row in range(len(tree.tokens)):
            alone = cpu(program, num_blocks=24)
            expected = run(alone, [*tokens, *(tree.tokens[node] for node in tree.path(row))], 0, table + 11)

            assert got[row].tobytes() == expected[-1].tobytes()


def test_a_chain_of_sixty_four_and_roots_beside_each_other() -> None:
    program = program_of(ATTENTIONS["plain"], "bfloat16")
    chain = Tree(tuple(prompt(66)), (-1, 0, 0, *range(2, 65)))  # row 1 pushes the others off their places
    check_tree(lambda: cpu(program), chain, 63)
    check_tree(lambda: cpu(program), Tree((5, 6, 7, 8), (-1, -1, -1, 1)), 33)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_the_reference_reads_paths_too(kv_dtype: str) -> None:
    dtype = "float32" if kv_dtype == "float32" else "bfloat16"
    program: Program = program_of(ATTENTIONS["window, qk-norm"], dtype, kv_dtype=kv_dtype)
    check_tree(lambda: reference(program), random_tree(3, 9), 29)


def test_a_tree_beside_other_requests_changes_nothing() -> None:
    program = program_of(ATTENTIONS["plain"], "bfloat16")
    tree, start = random_tree(2, 12), 61
    alone = cpu(program)
    run(alone, prompt(start), 0, TABLE)
    expected = run(alone, tree.tokens, start, TABLE, tree=tree)
    executor = cpu(program, threads=2)
    run(executor, prompt(start), 0, TABLE)
    other = prompt(30)
    one, two = step_of(tree.tokens, start, TABLE, tree=tree), step_of(other, 0, OTHER_TABLE)
    both = replace(
        one,
        tokens=np.concatenate([two.tokens, one.tokens]),
        positions=np.concatenate([two.positions, one.positions]),
        query_start=np.array([0, 30, 42], np.int32),
        context_len=np.concatenate([two.context_len, one.context_len]),
        block_tables=(np.concatenate([OTHER_TABLE, TABLE]),),
        logit_rows=np.arange(42, dtype=np.int32),
        sampling=greedy_rows(42),
        parents=np.concatenate([np.arange(-1, 29), np.where(one.parents < 0, -1, one.parents + 30)]).astype(
            np.int32
        ),
    )
    got = executor.forward(both).taps["logits"]

    assert got[30:].tobytes() == expected.tobytes()
    assert got[:30].tobytes() == run(cpu(program), other, 0, OTHER_TABLE).tobytes()


@pytest.mark.parametrize(
    ("parents", "words"),
    [((-1, 1), "follow"), ((-1, -1, 0), "follow"), ((0, 0), "follow"), ((-1, 5), "follow")],
)
def test_a_tree_that_is_none_is_refused(parents: tuple[int, ...], words: str) -> None:
    executor = cpu(program_of(ATTENTIONS["plain"], "bfloat16"))
    step = step_of([1] * len(parents), 0, TABLE)

    with pytest.raises(ValueError, match=words):
        executor.forward(replace(step, parents=np.array(parents, np.int32)))


@pytest.mark.parametrize(
    ("parents", "positions"),
    [((-1, 2, 0), (0, 2, 1)), ((-1, 1, 0), (0, 2, 1)), ((-1, 0, 2), (0, 1, 2))],
    ids=["a later row, at the place that fits it", "itself", "itself, at the end"],
)
def test_a_row_that_follows_itself_or_a_later_row_is_refused(
    parents: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    executor = cpu(program_of(ATTENTIONS["plain"], "bfloat16"))
    step = replace(step_of([1] * 3, 0, TABLE), positions=np.array(positions, np.int32))

    with pytest.raises(ValueError, match="follow"):
        executor.forward(replace(step, parents=np.array(parents, np.int32)))


def test_a_row_that_follows_a_row_of_another_request_is_refused() -> None:
    executor = cpu(program_of(ATTENTIONS["plain"], "bfloat16"))
    step = replace(
        step_of([1] * 4, 0, TABLE),
        positions=np.array([0, 1, 0, 1], np.int32),
        query_start=np.array([0, 2, 4], np.int32),
        context_len=np.array([2, 2], np.int32),
        block_tables=(np.concatenate([TABLE, OTHER_TABLE]),),
    )
    executor.forward(replace(step, parents=np.array([-1, 0, -1, 2], np.int32)))

    with pytest.raises(ValueError, match="follow"):
        executor.forward(replace(step, parents=np.array([-1, 0, -1, 0], np.int32)))


def test_a_path_that_is_too_long_and_a_move_out_of_the_pool_are_refused() -> None:
    executor = cpu(program_of(ATTENTIONS["plain"], "bfloat16"))
    chain = Tree((1,) * 68, (-1, 0, 0, *range(2, 67)))
    with pytest.raises(ValueError, match="too long"):
        run(executor, chain.tokens, 10, TABLE, tree=chain)
    with pytest.raises(ValueError, match="outside the pool"):
        run(executor, [1], 0, TABLE, moves=np.array([[0, 9 * BLOCK]], np.int32))
