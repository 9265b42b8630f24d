"""MODEL -> folder: a local folder, a .gguf file, the name of an embedded model, or a Hugging Face id.

Called by engine.build and `penstock models`. The hub is asked only for an id, once for each file, and not at
all where HF_HUB_OFFLINE is set. Refuses in one line, with the nearest name it knows.
"""

import difflib
import os
import re
from pathlib import Path

from penstock import env
from penstock.engine.gguf_folder import SUFFIX, folder_of, gguf_in
from penstock.errors import ModelNotFoundError

EMBEDDED = Path(__file__).resolve().parent.parent / "models"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
WANTED_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
                "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]  # fmt: skip
UNWANTED_FILES = ["*/*", "consolidated*"]  # other formats of the same weights, in folders and beside


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
    """The folder that holds `model`; a Hugging Face id is downloaded once. ModelNotFoundError if none."""
    path = os.path.expanduser(model)  # noqa: PTH111 these three of os.path raise for no text whatever
    if os.path.isdir(path):  # noqa: PTH112
        if not (Path(path) / "config.json").exists():
            found = gguf_in(Path(path))
            if found is not None:
                return folder_of(found)
            raise ModelNotFoundError(
                f"{model}: the folder has no config.json; name the folder of one checkpoint."
            )
        return Path(path)
    if os.path.isfile(path):  # noqa: PTH113
        if path.endswith(SUFFIX):
            return folder_of(Path(path))
        raise ModelNotFoundError(
            f"{model} is no .gguf file; name one, or the folder that holds config.json and the weights."
        )
    embedded = embedded_models()
    if model in embedded:
        return embedded[model]
    if HUB_ID.fullmatch(model):
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
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES
        )
    except hub.LocalEntryNotFoundError:
        state = "HF_HUB_OFFLINE is set" if env.hub_is_offline() else "the hub cannot be reached"
        why = f"is not on this disk and {state}; connect once, or name a local folder"
    except hub.RevisionNotFoundError:
        why = f"has no revision {revision or 'main'!r}; check the name of the branch or commit"
    except hub.GatedRepoError:
        why = "is gated; accept its terms on its page and set HF_TOKEN to a token of that account"
    except hub.RepositoryNotFoundError:
        why = "is not on the hub, or it is private; check the spelling, or set HF_TOKEN"
    except hub.HFValidationError:
        why = "is no valid Hugging Face id; check the spelling"
    except Exception as error:  # the hub's client lets its transport's errors through
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        why = f"could not be downloaded ({line}); try again, or name a local folder"
    else:
        if (Path(folder) / "config.json").exists():
            return Path(folder)
        why = "has no config.json; only transformers-format checkpoints can be served"
    raise ModelNotFoundError(f"{model} {why}.")
