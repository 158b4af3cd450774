"""The commands that the service adds to `atomscope`: the stack, its processes, and an operator's tasks."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from atomscope.cli.registry import EXIT_DONE, EXIT_USAGE, Output, Registry

DEFAULT_DATA_DIR = Path("~/.local/share/atomscope")
DEFAULT_PORT = 8321


def register(registry: Registry) -> None:
    """Called when the command line starts: what a command needs is imported when it runs."""
    registry.add_command("up", "run the whole service on this machine", _configure_up, _up)
    registry.add_command("api", "run the API (settings from the environment)", _configure_api, _api)
    registry.add_command(
        "control", "run the control worker (settings from the environment)", _nothing, _control
    )
    registry.add_command("migrate", "bring the database to the newest schema", _nothing, _migrate)
    registry.add_command(
        "models register", "put a base model's folder into the store", _configure_register, _register_model
    )
    registry.add_command(
        "keys bootstrap", "make an API key without having one", _configure_bootstrap, _bootstrap_key
    )


def _nothing(_parser: ArgumentParser) -> None:
    """The command takes no arguments."""


def _configure_up(parser: ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where everything is kept")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes any free one")
    parser.add_argument("--workers", type=int, help="pipeline workers (default: one for each GPU, or one)")


def _up(arguments: Namespace, output: Output) -> int:
    from atomscope_service.embedded.up import up  # noqa: PLC0415

    negative = arguments.workers is not None and arguments.workers < 0
    if negative or not 0 <= arguments.port <= 65_535:
        output.note("--workers must not be negative and --port must be between 0 and 65535")
        return EXIT_USAGE
    return up(arguments.data_dir, arguments.host, arguments.port, arguments.workers, output)


def _configure_api(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--fd", type=int, help="a listening socket that was handed down, in place of host and port"
    )


def _api(arguments: Namespace, _output: Output) -> int:
    import uvicorn  # noqa: PLC0415

    from atomscope_service.app import create_app  # noqa: PLC0415
    from atomscope_service.control.queue import ControlQueue  # noqa: PLC0415
    from atomscope_service.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    uvicorn.run(
        create_app(settings, ControlQueue(settings.broker_url, settings.lease_seconds)),
        host=settings.host,
        port=settings.port,
        fd=arguments.fd,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return EXIT_DONE


def _control(_arguments: Namespace, _output: Output) -> int:
    from atomscope_service.control.worker import run  # noqa: PLC0415
    from atomscope_service.settings import load_settings  # noqa: PLC0415

    return run(load_settings())


def _migrate(_arguments: Namespace, output: Output) -> int:
    from atomscope_service.db.engine import Database  # noqa: PLC0415
    from atomscope_service.db.migrate import upgrade  # noqa: PLC0415
    from atomscope_service.settings import load_settings  # noqa: PLC0415

    database = Database(load_settings().database_url)
    upgrade(database.engine)
    database.dispose()
    output.result({"migrated": True}, "the database has the newest schema")
    return EXIT_DONE


def _installation(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=Path, help="an embedded installation; else settings come from the environment"
    )
    parser.add_argument("--project", default="default", help="name or id of the project")


def _environment(arguments: Namespace) -> dict[str, str]:
    """The settings of the installation that the command is about."""
    from atomscope_service.embedded.data_dir import DataDir  # noqa: PLC0415
    from atomscope_service.embedded.environment import service_environment  # noqa: PLC0415

    if arguments.data_dir is None:
        return dict(os.environ)
    return service_environment(DataDir(arguments.data_dir.expanduser().resolve()), os.environ)


def _configure_register(parser: ArgumentParser) -> None:
    _installation(parser)
    parser.add_argument("--name", required=True)
    parser.add_argument(
        "--path", type=Path, required=True, help="folder of safetensors, config and tokenizer"
    )


def _register_model(arguments: Namespace, output: Output) -> int:
    from atomscope_service.api.models import render_model  # noqa: PLC0415
    from atomscope_service.settings import load_settings  # noqa: PLC0415
    from atomscope_service.uploads.register import register_model  # noqa: PLC0415

    settings = load_settings(_environment(arguments))
    model = render_model(register_model(settings, arguments.project, arguments.name, arguments.path))
    output.result(model, f"{model.id}  {model.name}")
    return EXIT_DONE


def _configure_bootstrap(parser: ArgumentParser) -> None:
    _installation(parser)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True, help="new file for the key, mode 0600")
    parser.add_argument("--create-project", action="store_true", help="make the project if there is none")


def _bootstrap_key(arguments: Namespace, output: Output) -> int:
    from atomscope_service.auth.bootstrap import bootstrap_key  # noqa: PLC0415
    from atomscope_service.settings import load_settings  # noqa: PLC0415

    settings = load_settings(_environment(arguments))
    project = bootstrap_key(
        settings, arguments.project, arguments.name, arguments.out, create=arguments.create_project
    )
    output.result(
        {"project": project, "key_file": str(arguments.out)}, f"a key of {project} is in {arguments.out}"
    )
    return EXIT_DONE
