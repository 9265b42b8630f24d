"""Where training keeps things: shipped models, older stages, records, and what can be made again.

Called by __main__.py. Shipped models lie in the package, others beside the recipes, state in build/.
"""

from dataclasses import dataclass
from pathlib import Path

from tools.train.recipe import DRAFT, SAPLING, SPRIG, SPROUT, TINY

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Folders:
    """Every folder and file that the commands use, from the repository's root."""

    root: Path = _ROOT

    @property
    def work(self) -> Path:
        return self.root / "build" / "train"

    @property
    def corpus(self) -> Path:
        return self.work / "corpus.json"

    def tokenizer(self, vocab_size: int) -> Path:
        return self.work / f"tokenizer-{vocab_size}.json"

    def state(self, name: str) -> Path:
        return self.work / name

    def finished(self, name: str) -> Path:
        """A mark that a run of this model has ended."""
        return self.state(name) / "finished"

    @property
    def from_nothing(self) -> Path:
        """A mark that committed weights do not count, so that a killed `make --fresh` goes on as one."""
        return self.work / "from-nothing"

    def record(self, name: str) -> Path:
        return self.root / "tools" / "train" / "record" / name

    def model(self, name: str) -> Path:
        """The checkpoint: in the package if shipped, beside the recipes if grown from, else in build."""
        if name in (TINY.name, DRAFT.name):
            return self.root / "src" / "penstock" / "models" / name
        if name in (SPROUT.name, SAPLING.name, SPRIG.name):
            return self.root / "tools" / "train" / "stages" / name
        return self.work / f"{name}-model"
