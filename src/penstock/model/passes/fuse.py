"""Fuse: the plain program rewritten with the ops that kernels run, bit for bit the same.

Patterns, each anchored at the call that ends it: norm + operand; take_rows + norm + operand; norm +
residual; q, k, v products + head norms + rope + rounding + cache write; the same of latents; gate and up
products + activation + operand; activation (or gated norm) + operand; product + residual. A call is
swallowed only if nobody else reads its output; what matches no pattern stays as it is.
"""

from collections.abc import Callable
from typing import Any

from penstock.model.program import Call, Program, WeightUse
from penstock.ops.attention import attention, kv_write
from penstock.ops.contract import Op
from penstock.ops.embedding import take_rows
from penstock.ops.heads import join_heads
from penstock.ops.linear import linear, linear_add
from penstock.ops.norm import head_norm, norm, norm_add, norm_operand, rows_norm_operand
from penstock.ops.pointwise import activated, activated_operand, add, gated, gated_operand, join
from penstock.ops.rope import latent_rope_write, rope, split_rope_write
from penstock.ops.rounding import operand, round_to
from penstock.ops.state_space import gated_norm, gated_norm_operand


def fuse(program: Program) -> Program:
    """`program` with every pattern replaced by its fused op, and the weights of joined products stacked."""
    rewriter = _Rewriter(program)
    for pattern in (_norms, _qkv, _latents, _gate_up, _activation, _residual):
        rewriter.apply(pattern)
    return rewriter.finish()


class _Rewriter:
    """The calls under rewriting, and who makes and who reads each value."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._weights = dict(program.weights)
        self._slots: list[list[Call]] = [[] for _ in program.calls]
        self._place: dict[int, int] = {}  # id of a call -> its slot
        self._makers: dict[str, Call] = {}
        self._readers: dict[str, list[Call]] = {}
        for slot, call in enumerate(program.calls):
            self._put(call, slot)
        for name in filter(None, program.hidden.inputs):  # so that nobody swallows what it reads
            self._readers.setdefault(name, []).append(program.hidden)

    @property
    def _calls(self) -> list[Call]:
        return [call for slot in self._slots for call in slot]

    def apply(self, pattern: "Pattern") -> None:
        for call in self._calls:
            if id(call) in self._place:
                pattern(self, call)

    def finish(self) -> Program:
        calls = (*self._calls, self._program.hidden)
        names = (str(name).removeprefix("weights.") for call in calls for name in call.inputs)
        used = dict.fromkeys(name for name in names if name in self._weights)  # in order of first use
        return Program(
            spec=self._program.spec,
            calls=tuple(self._calls),
            weights={name: self._weights[name] for name in used},
            constants=self._program.constants,
            kv_layers=self._program.kv_layers,
            state_layers=self._program.state_layers,
            kv_groups=self._program.kv_groups,
            max_context=self._program.max_context,
            hidden=self._program.hidden,
        )

    def maker(self, value: str | None, op: Op) -> Call | None:
        """The call of `op` that makes `value` for exactly one reader."""
        call = self._makers.get(value) if value is not None else None
        if call is None or call.op is not op:
            return None
        return call if len(self._readers.get(call.output, ())) == 1 else None

    def reader(self, value: str, op: Op) -> Call | None:
        return next((call for call in self._readers.get(value, ()) if call.op is op), None)

    def replace(self, swallowed: list[Call], made: list[Call]) -> None:
        """Put `made` where the last of `swallowed` was."""
        slot = max(self._place[id(call)] for call in swallowed)
        for call in swallowed:
            self._take(call)
        for call in made:
            self._put(call, slot)

    def stack(self, name: str, parts: list[str | None]) -> str | None:
        """The weight that stacks `parts` along N; None if there are none."""
        uses = [self._weights[part.removeprefix("weights.")] for part in parts if part is not None]
        if not uses:
            return None
        rows = sum(use.shape[0] for use in uses)
        sources = tuple(source for use in uses for source in use.sources)
        shape = (rows, *uses[0].shape[1:])
        self._weights[name] = WeightUse(name, sources, shape, uses[0].kind, uses[0].format)
        return f"weights.{name}"

    def can_join(self, products: list[Call]) -> bool:
        """Same input, and all with a bias or none."""
        has_bias = {call.inputs[2] is not None for call in products}
        return len({call.inputs[0] for call in products}) == len(has_bias) == 1

    def joined(self, products: list[Call], name: str) -> list[Call]:
        """Calls that make `name`, the products side by side: neighbours of one format are one product."""
        runs: list[list[Call]] = []
        for call in products:
            if runs and self._format_of(runs[-1][-1]) == self._format_of(call):
                runs[-1].append(call)
            else:
                runs.append([call])
        calls: list[Call] = []
        for index, run in enumerate(runs):
            part = name if len(runs) == 1 else f"{name}.{index}"
            weight = self.stack(part, [call.inputs[1] for call in run])
            bias = self.stack(f"{part}_bias", [call.inputs[2] for call in run])
            calls.append(Call(linear, (run[0].inputs[0], weight, bias), part, run[0].attrs))
        left = calls[0].output
        for index, call in enumerate(calls[1:], start=2):
            output = name if index == len(runs) else f"{name}.0-{index - 1}"
            calls.append(Call(join, (left, call.output), output, {}))
            left = output
        return calls

    def _format_of(self, product: Call) -> str | None:
        return self._weights[str(product.inputs[1]).removeprefix("weights.")].format

    def _put(self, call: Call, slot: int) -> None:
        self._slots[slot].append(call)
        self._place[id(call)] = slot
        self._makers[call.output] = call
        for name in filter(None, call.inputs):
            self._readers.setdefault(name, []).append(call)  # twice, if it reads twice

    def _take(self, call: Call) -> None:
        slot = self._place.pop(id(call))
        self._slots[slot] = [c for c in self._slots[slot] if c is not call]
        del self._makers[call.output]
        for name in filter(None, call.inputs):
            self._readers[name] = [c for c in self._readers[name] if c is not call]


Pattern = Callable[[_Rewriter, Call], bool]


def _norms(r: _Rewriter, end: Call) -> bool:
    normed = r.maker(end.inputs[0], norm) if end.op is operand else None
    if normed is None:
        return False
    attrs = {**normed.attrs, **end.attrs}
    rows = r.maker(normed.inputs[0], take_rows)
    if rows is None:
        r.replace([normed, end], [Call(norm_operand, normed.inputs, end.output, attrs)])
    else:
        inputs = (*rows.inputs, *normed.inputs[1:])
        r.replace([rows, normed, end], [Call(rows_norm_operand, inputs, end.output, attrs)])
    return True


def _chain(r: _Rewriter, value: str | None) -> list[Call | None] | None:
    """[product, head norm or None, rope or None, round] that end in `value`."""
    rounded = r.maker(value, round_to)
    if rounded is None:
        return None
    value = rounded.inputs[0]
    turned = r.maker(value, rope)
    if turned is not None:
        value = turned.inputs[0]
    normed = r.maker(value, head_norm)
    if normed is not None:
        value = normed.inputs[0]
    product = r.maker(value, linear)
    return None if product is None else [product, normed, turned, rounded]


def _qkv(r: _Rewriter, write: Call) -> bool:
    reader = r.reader(str(write.inputs[2]), attention) if write.op is kv_write else None
    if reader is None or write.inputs[1] is None:
        return False
    chains = [_chain(r, value) for value in (reader.inputs[0], write.inputs[0], write.inputs[1])]
    if any(chain is None for chain in chains):
        return False
    (q, q_norm, q_rope, q_round), (k, k_norm, k_rope, k_round), (v, v_norm, v_rope, _) = (
        c or [] for c in chains
    )
    products = [call for call in (q, k, v) if call is not None]
    same_norm = _norm_of(q_norm) == _norm_of(k_norm)
    same_rope = (q_rope and q_rope.inputs[1:]) == (k_rope and k_rope.inputs[1:])
    if v_norm or v_rope or not same_norm or not same_rope or not r.can_join(products):
        return False
    assert q_round is not None and k_round is not None

    layer = str(write.output).removesuffix("kv")  # layers.<i>.attn.
    joined = r.joined(products, f"{layer}qkv")
    kv, slots, row_request, block_table = write.inputs[2:]
    positions = reader.inputs[2]
    cos, sin = q_rope.inputs[2:] if q_rope else (None, None)
    norms = [call.inputs[1] if call else None for call in (q_norm, k_norm)]
    attrs = {
        **{name: reader.attrs[name] for name in ("num_heads", "num_kv_heads", "head_dim")},
        "norm_row": q_norm is not None and q_norm.attrs["span"] > reader.attrs["head_dim"],
        "norm": _norm_of(q_norm),
        "interleaved": q_rope is not None and q_rope.attrs["interleaved"],
        "to": q_round.attrs["to"],
        "kv_to": k_round.attrs["to"],
    }
    inputs = (joined[-1].output, *norms, positions, slots, cos, sin, kv, block_table, row_request)
    written = Call(split_rope_write, inputs, q_round.output, attrs)
    swallowed = [call for chain in chains for call in chain or [] if call is not None]
    r.replace([*swallowed, write], [*joined, written])
    return True


def _latents(r: _Rewriter, write: Call) -> bool:
    reader = r.reader(str(write.inputs[2]), attention) if write.op is kv_write else None
    if reader is None or write.inputs[1] is not None:
        return False
    q_round, k_round = r.maker(reader.inputs[0], round_to), r.maker(write.inputs[0], round_to)
    q = r.maker(q_round.inputs[0], join_heads) if q_round else None
    k = r.maker(k_round.inputs[0], join) if k_round else None
    if q is None or k is None or q_round is None or k_round is None:
        return False
    normed, k_rope, q_rope = (
        r.maker(k.inputs[0], norm),
        r.maker(k.inputs[1], rope),
        r.maker(q.inputs[1], rope),
    )
    if normed is None or k_rope is None or q_rope is None or q_rope.inputs[1:] != k_rope.inputs[1:]:
        return False
    products = [r.maker(normed.inputs[0], linear), r.maker(k_rope.inputs[0], linear)]
    found = [call for call in products if call is not None]
    if len(found) != len(products) or not r.can_join(found):
        return False

    layer = str(write.output).removesuffix("kv")  # layers.<i>.attn.
    joined = r.joined(found, f"{layer}kv_low")
    kv, slots, row_request, block_table = write.inputs[2:]
    attrs = {
        **{name: reader.attrs[name] for name in ("num_heads", "head_dim", "latent_dim")},
        "norm": dict(normed.attrs),
        "interleaved": q_rope.attrs["interleaved"],
        "to": q_round.attrs["to"],
        "kv_to": k_round.attrs["to"],
    }
    positions, cos, sin = q_rope.inputs[1:]
    inputs = (joined[-1].output, q.inputs[0], q_rope.inputs[0], normed.inputs[1],
              positions, slots, cos, sin, kv, block_table, row_request)  # fmt: skip
    written = Call(latent_rope_write, inputs, q_round.output, attrs)
    r.replace([*found, normed, k_rope, q_rope, k, q, k_round, q_round, write], [*joined, written])
    return True


def _norm_of(call: Call | None) -> dict[str, Any]:  # Any: JSON values
    """The attributes of a head norm but for its span, which is q's own."""
    return {k: v for k, v in call.attrs.items() if k != "span"} if call else {"eps": 0.0}


def _gate_up(r: _Rewriter, end: Call) -> bool:
    act = r.maker(end.inputs[0], gated) if end.op is operand else None
    if act is None:
        return False
    gate, up = (r.maker(value, linear) for value in act.inputs)
    if gate is None or up is None or not r.can_join([gate, up]):
        return False
    layer = act.output.removesuffix("gated")  # layers.<i>.mlp.
    joined = r.joined([gate, up], f"{layer}gate_up")
    closed = Call(gated_operand, (joined[-1].output,), end.output, {**act.attrs, **end.attrs})
    r.replace([gate, up, act, end], [*joined, closed])
    return True


def _activation(r: _Rewriter, end: Call) -> bool:
    for op, fused in ((activated, activated_operand), (gated_norm, gated_norm_operand)):
        act = r.maker(end.inputs[0], op) if end.op is operand else None
        if act is not None:
            r.replace([act, end], [Call(fused, act.inputs, end.output, {**act.attrs, **end.attrs})])
            return True
    return False


def _residual(r: _Rewriter, end: Call) -> bool:
    if end.op is not add:
        return False
    for op, fused in ((linear, linear_add), (norm, norm_add)):
        made = r.maker(end.inputs[1], op)
        if made is not None:
            r.replace([made, end], [Call(fused, (*made.inputs, end.inputs[0]), end.output, made.attrs)])
            return True
    return False
