"""MODEL -> folder: a local folder, the name of an embedded model, or a Hugging Face id (lazily, offline respected)."""

import difflib
import re
from pathlib import Path

from penstock import env
from penstock.errors import ModelNotFoundError

EMBEDDED = Path(__file__).resolve().parent.parent / "models"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")
WANTED_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
                "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*"]  # fmt: skip


def embedded_models() -> dict[str, Path]:
    """Models that ship in the package, by name."""
    return {path.parent.name: path.parent for path in sorted(EMBEDDED.glob("*/config.json"))}


def cached_models() -> dict[str, Path]:
    """Hugging Face ids whose snapshots are on this disk: id -> folder of the newest one."""
    found: dict[str, Path] = {}
    for repository in sorted(env.hub_cache_dir().glob("models--*")):
        snapshots = [p for p in repository.glob("snapshots/*") if (p / "config.json").exists()]
        if snapshots:
            newest = max(snapshots, key=lambda p: p.stat().st_mtime)
            found[repository.name.removeprefix("models--").replace("--", "/", 1)] = newest
    return found


def locate(model: str, revision: str | None = None) -> Path:
    """The folder that holds `model`. Downloads a Hugging Face id once; raises ModelNotFoundError otherwise."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotFoundError(
                f"{model}: the folder has no config.json; name the folder of one checkpoint."
            )
        return path
    if path.is_file():
        raise ModelNotFoundError(
            f"{model} is a file; name the folder that holds config.json and the weights."
        )
    embedded = embedded_models()
    if model in embedded:
        return embedded[model]
    if HUB_ID.match(model) and not model.startswith(("./", "../", "/")):
        return _from_hub(model, revision)
    near = difflib.get_close_matches(model, embedded, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"embedded models: {', '.join(embedded) or 'none'}."
    raise ModelNotFoundError(
        f"{model!r} is no folder, no embedded model and no Hugging Face id (owner/name); {hint}"
    )


def _from_hub(model: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        folder = huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=WANTED_FILES)
    except hub.LocalEntryNotFoundError:
        state = "HF_HUB_OFFLINE is set" if env.hub_is_offline() else "the hub cannot be reached"
        raise ModelNotFoundError(
            f"{model} is not on this disk and {state}; connect once, or name a local folder."
        ) from None
    except hub.RevisionNotFoundError:
        raise ModelNotFoundError(
            f"{model} has no revision {revision!r}; check the name of the branch or commit."
        ) from None
    except hub.GatedRepoError:
        raise ModelNotFoundError(
            f"{model} is gated; accept its terms on its page and set HF_TOKEN to a token of that account."
        ) from None
    except hub.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"the hub has no model {model}, or it is private; check the spelling, or set HF_TOKEN."
        ) from None
    except (hub.HfHubHTTPError, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"{model} could not be downloaded ({line}); try again, or name a local folder."
        ) from None
    if not (Path(folder) / "config.json").exists():
        raise ModelNotFoundError(
            f"{model} has no config.json; only transformers-format checkpoints can be served."
        )
    return Path(folder)
