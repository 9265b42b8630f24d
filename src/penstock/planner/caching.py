"""What is kept of one request for the next: whether anything is, and how much of it may be one API key's.

Called by `planner.plan`. Raises ConfigError.
"""

from penstock.config import EngineConfig
from penstock.errors import ConfigError
from penstock.model.spec import ModelSpec

ASKED = "asked for"


def plan_prefix_cache(config: EngineConfig, spec: ModelSpec, reasons: dict[str, str]) -> bool:
    if not spec.is_causal:
        reasons["prefix_cache"] = "rows read what comes after them, so equal beginnings are not equal rows"
        return False
    reasons["prefix_cache"] = "exact, and free where nothing is shared" if config.prefix_cache else ASKED
    return config.prefix_cache


def plan_key_share(config: EngineConfig, reasons: dict[str, str]) -> float:
    if not 0.01 <= config.key_share <= 1:
        raise ConfigError(f"key_share={config.key_share}: a share of the blocks is 0.01 to 1; 1 is no bound.")
    is_default = config.key_share == EngineConfig().key_share
    reasons["key_share"] = "so that one API key's prompts cost others few hits" if is_default else ASKED
    return config.key_share
