"""What an op is: name, dims, numpy reference, tolerance, cost. Kernels bind to it; it knows none.

`model.build` writes programs of ops, the reference backend calls them, kernels are compared with them,
the planner prices them. The dims string drives the contract test and the shapes of a program, so it
cannot lie:  x[T,K], weight[N,K], bias[N]? -> y[T,N]

    name[A,B]     a float32 array; the same letter is the same size everywhere in the op
    rows[R]:T     integers >= 0 and below T
    name[...]?    optional: None is passed where there is none
    qkv[T,Q+2C]   a size may be a sum of multiples of letters
    kv            a state (keys and values), no array
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from penstock.registry import Registry

Array = npt.NDArray[Any]  # Any: float32 activations and integer indices pass through the same operands
Sizes = Mapping[str, int]  # dim letter -> size
Widths = Mapping[str, float]  # operand name -> bytes per element
Reference = Callable[..., Any]  # Any: operands and plain JSON attributes; an array, or the written state


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call must do and move, whatever the kernel."""

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Dim:
    """A size: a sum of multiples of letters, `Q+2C`."""

    terms: tuple[tuple[str, int], ...]

    def size(self, sizes: Sizes) -> int:
        return sum(times * sizes[letter] for letter, times in self.terms)


@dataclass(frozen=True, slots=True)
class Operand:
    """One name of a dims string. `dims` is None for a state; `below` bounds integers."""

    name: str
    dims: tuple[Dim, ...] | None
    below: str | None
    is_optional: bool

    def num_elements(self, sizes: Sizes) -> int:
        count = 1
        for dim in self.dims or ():
            count *= dim.size(sizes)
        return count if self.dims is not None else 0


_OPERAND = re.compile(r"(?P<name>\w+)(\[(?P<dims>[^\]]*)\])?(:(?P<below>\w+))?(?P<optional>\?)?$")
_TERM = re.compile(r"(\d*)([A-Za-z]\w*)$")


def _operand(text: str) -> Operand:
    match = _OPERAND.match(text)
    assert match, f"not an operand: {text!r}"
    dims = None if match["dims"] is None else tuple(_dim(d) for d in match["dims"].split(","))
    return Operand(match["name"], dims, match["below"], match["optional"] is not None)


def _dim(text: str) -> Dim:
    terms = []
    for term in text.split("+"):
        match = _TERM.match(term.strip())
        assert match, f"not a size: {text!r}"
        terms.append((match[2], int(match[1] or 1)))
    return Dim(tuple(terms))


def parse_dims(dims: str) -> tuple[tuple[Operand, ...], Operand]:
    """The inputs and the output of a dims string."""
    left, _, right = dims.partition("->")
    inputs = re.split(r",\s*(?![^\[]*\])", left.strip())
    return tuple(_operand(text.strip()) for text in inputs), _operand(right.strip())


@dataclass(frozen=True, eq=False)
class Op:
    """One verb of the program. Called by name it is its reference: numpy, float32, obviously right."""

    name: str
    dims: str
    reference: Reference
    tolerance: Mapping[str, float]  # relative, by the arithmetic of a kernel
    flops: Callable[[Sizes], float]
    traffic: Callable[[Sizes, Widths], float] | None = None  # bytes, where not every operand moves once
    mutates: tuple[str, ...] = ()  # operands written in place
    inputs: tuple[Operand, ...] = field(init=False)
    output: Operand = field(init=False)

    def __post_init__(self) -> None:
        inputs, output = parse_dims(self.dims)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "output", output)

    def __call__(self, *inputs: Any, **attrs: Any) -> Any:  # Any: see Reference
        return self.reference(*inputs, **attrs)

    def cost(self, sizes: Sizes, widths: Widths) -> Cost:
        """Work and traffic at these sizes. An operand that `widths` does not name is 4 bytes wide."""
        if self.traffic is not None:
            return Cost(self.flops(sizes), self.traffic(sizes, widths))
        moved = 0.0
        for operand in (*self.inputs, self.output):
            if operand.dims is None or widths.get(operand.name) == 0:
                continue
            moved += operand.num_elements(sizes) * widths.get(operand.name, 4)
        return Cost(self.flops(sizes), moved)


OPS: Registry[Op] = Registry("op", "penstock.ops")


def op(
    *,
    dims: str,
    tolerance: Mapping[str, float],
    flops: Callable[[Sizes], float],
    traffic: Callable[[Sizes, Widths], float] | None = None,
    mutates: tuple[str, ...] = (),
    name: str | None = None,
) -> Callable[[Reference], Op]:
    """Make the decorated reference an Op and register it, under its own name unless `name` is given."""

    def make(reference: Reference) -> Op:
        made = Op(name or reference.__name__, dims, reference, tolerance, flops, traffic, mutates)
        return OPS.register(made.name)(made)

    return make
