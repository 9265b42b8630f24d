"""`penstock serve [MODEL]`: the HTTP server. Without MODEL it serves the one that ships in the package.

Options come from the command line and from one TOML file (--config), the command line winning. Listens before
the model is loaded, says one line when it is ready, and ends on SIGTERM or Ctrl-C when open answers have.
"""

import argparse
from pathlib import Path
from typing import Any

from penstock import env
from penstock.cli.flags import add_engine_flags, add_flags, given_flags
from penstock.config import EngineConfig, ServerConfig, from_mapping, read_fields
from penstock.errors import ConfigError
from penstock.event_log import EventLog

EMBEDDED = "penstock-tiny"
TABLES = ("engine", "server", "limits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=None,
        help=f"a local folder, an embedded name or a Hugging Face id. Default: {EMBEDDED}",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file: model = NAME, and tables engine, server, limits"
    )
    add_flags(parser, ServerConfig, "server", "every limit is in the table limits of --config")
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    file = read_file(options.config) if options.config is not None else {}
    engine = from_mapping({**file.get("engine", {}), **given_flags(options, EngineConfig)})
    asked = read_fields({**file.get("server", {}), **given_flags(options, ServerConfig)}, ServerConfig)
    model = options.model or file.get("model", EMBEDDED)

    from penstock.api.context import Context
    from penstock.api.keys import read_keys
    from penstock.api.server import bind, serve, url_of
    from penstock.engine.async_engine import AsyncEngine
    from penstock.engine.serving import Limits
    from penstock.engine.steady_memory import freeze_loaded, share_arenas

    share_arenas()
    limits = read_fields(file.get("limits", {}), Limits)
    keys = read_keys(asked.api_key_file, env.api_key())
    bound = bind(asked, keys)
    log = EventLog()
    context = Context(asked, keys, log, limits)

    async def start() -> AsyncEngine:
        return await AsyncEngine.start(model, engine, limits, resume=asked.resume, log=log)

    def on_ready() -> None:
        freeze_loaded()
        facts = context.engine.facts
        key = "an API key is needed" if keys.are_needed else "no API key is needed"
        print(
            f"penstock {env.penstock_version()} serves {context.model_name} at {url_of(bound)} "
            f"({facts.exactness}, context {facts.max_context:,}, {key})",
            flush=True,
        )

    return serve(context, bound, start, on_ready)


def read_file(name: str) -> dict[str, Any]:  # Any: TOML, each table checked by its type
    """A configuration file; a key or table that means nothing is one clear line."""
    import tomllib

    try:
        value = tomllib.loads(Path(name).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {name}: {error.strerror}; give a TOML file that can be read.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {name} is no TOML: {error}.") from None
    for key, entry in value.items():
        if key == "model" and isinstance(entry, str):
            continue
        if key not in TABLES or not isinstance(entry, dict):
            raise ConfigError(
                f"--config {name} has {key!r:.60}; it may have model (a text) and the tables "
                f"{', '.join(TABLES)}."
            )
        try:
            _read_table(key, entry)
        except ConfigError as error:
            raise ConfigError(f"--config {name}, table {key}: {error}") from None
    return value


def _read_table(name: str, table: dict[str, Any]) -> None:
    """ConfigError for a key or a value that this table does not know, whatever the command line says."""
    from penstock.engine.serving import Limits

    if name == "engine":
        from_mapping(table)
    else:
        read_fields(table, Limits if name == "limits" else ServerConfig)
