"""To which sizes a checkpoint's embeddings may be cut: what its config.json says of its training.

Called where a model is made known to clients. A cut of any other embedding would be noise with a length of 1.
Kusupati et al. 2022, arXiv:2205.13147.
"""

from typing import Final

from penstock.model.config_reader import ConfigReader, JSONObject, show

MATRYOSHKA: Final = ("is_matryoshka", "matryoshka_dimensions")


def read_sizes(config: JSONObject, hidden_size: int) -> tuple[int, ...]:
    """The sizes besides the whole, ascending; none where the checkpoint does not speak of it.

    >>> read_sizes({"matryoshka_dimensions": [64, 32]}, 128), read_sizes({}, 128)
    ((32, 64), ())
    """
    reader = ConfigReader(config)
    flag, name = MATRYOSHKA
    sizes = config.get(name)
    if sizes is not None:
        is_list = isinstance(sizes, list) and all(type(size) is int for size in sizes)
        if not is_list or not all(1 <= size <= hidden_size for size in sizes):
            raise reader.refuse(name, f"is {show(sizes)}; it must list sizes up to {hidden_size}")
        return tuple(sorted({size for size in sizes if size < hidden_size}))
    return tuple(range(1, hidden_size)) if reader.find(flag, bool) else ()
