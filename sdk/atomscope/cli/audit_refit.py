"""`atomscope audit refit`: the fit of an audit once more, of the service or of a bundle on this machine."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from atomscope.cli.audit import add_limit, add_waiting, finish, metadata_of
from atomscope.cli.audit_local import show_local
from atomscope.cli.config_file import read_settings
from atomscope.cli.connect import connect, is_audit_id, number, out_folder
from atomscope.cli.plugins import is_missing_extra
from atomscope.cli.registry import EXIT_DONE, LocalRefit, LocalRunner, Output
from atomscope.cli.targets import add_target
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.errors import InvalidInput, MissingExtra, UsageError
from atomscope.types.presets import PresetName
from atomscope.types.spec import Preconditioner

_SETTINGS = ("n_atoms", "alpha", "seed", "preconditioner")
_LOCAL = ("out", "base_model")
_REMOTE = ("name", "metadata", "no_wait", "timeout", "base_url", "api_key_file")


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command(
        "audit refit",
        "fit an audit's stored gradients under other settings",
        _configure,
        partial(_run, tree=tree),
    )


def _configure(parser: ArgumentParser) -> None:
    add_target(parser)
    settings = parser.add_argument_group("settings (those not given are the audit's own, or the preset's)")
    settings.add_argument("--n-atoms", type=_or_auto(number(int, 1)), metavar="K|auto")
    settings.add_argument("--alpha", type=_or_auto(number(float, 0)), metavar="ALPHA|auto")
    settings.add_argument("--seed", type=number(int, 0))
    settings.add_argument("--preconditioner", choices=get_args(Preconditioner))
    settings.add_argument("--preset", choices=get_args(PresetName))
    settings.add_argument("--config", type=Path, metavar="FILE", help="more of them, JSON or TOML")
    add_limit(parser)
    local = parser.add_argument_group("of a bundle, or of the work beside one (OUT.partial)")
    local.add_argument("--out", type=out_folder, metavar="BUNDLE", help="folder of the new bundle")
    local.add_argument(
        "--base-model", type=Path, metavar="DIR", help="the audited base model, if it was moved since"
    )
    add_waiting(parser, "of an audit of the service")


def _run(args: Namespace, output: Output, *, tree: CommandTree) -> int:
    settings = read_settings(args.config)
    for name in _SETTINGS:
        value = getattr(args, name)
        if value is not None:
            if name in settings:
                raise UsageError(f"--{name.replace('_', '-')} and {args.config} both give {name}")
            settings[name] = value
    if is_audit_id(args.target):
        _refuse(args, _LOCAL, "an audit of the service: `audit download` brings its bundle")
        return _remotely(args, settings, output)
    _refuse(args, _REMOTE, "a bundle")
    return _locally(args, settings, output, tree.load_runner)


def _refuse(args: Namespace, options: tuple[str, ...], what: str) -> None:
    for option in options:
        value = getattr(args, option)
        if value is not None and value is not False:
            raise UsageError(f"--{option.replace('_', '-')} has no meaning for {what}")


def _remotely(args: Namespace, settings: dict[str, Any], output: Output) -> int:
    metadata = metadata_of(args)
    with connect(args) as client:
        audit = client.audits.get(args.target).refit(
            preset=args.preset, config=settings, name=args.name, metadata=metadata
        )
        if args.no_wait:
            output.result({"audit": audit.resource}, audit.id)
            return EXIT_DONE
        output.note(f"audit {audit.id}")
        return finish(audit, args, output)


def _locally(
    args: Namespace, settings: dict[str, Any], output: Output, load: Callable[[], LocalRunner] | None
) -> int:
    if args.out is None:
        raise UsageError("a bundle needs --out BUNDLE, the folder that the new bundle is written to")
    request = LocalRefit(
        source=args.target,
        out=args.out,
        base_model=args.base_model,
        preset=args.preset,
        settings=settings,
    )
    try:
        if load is None:
            raise MissingExtra("audit refit BUNDLE", "workers")
        runner = load()
        return show_local(lambda tell: runner.refit(request, tell), args.limit, output)
    except InvalidInput as error:
        if error.code != "bad_setting" or args.config is None:
            raise
        raise InvalidInput(error.code, f"{args.config}: {error.detail}", error.problems) from error
    except ModuleNotFoundError as error:
        if not is_missing_extra(error):
            raise
        raise MissingExtra("audit refit BUNDLE", "workers") from error


def _or_auto(parse: Callable[[str], float]) -> Callable[[str], float | str]:
    """Argument type of a number or `auto`."""

    def parsed(text: str) -> float | str:
        try:
            return "auto" if text == "auto" else parse(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{error}, or auto") from error

    return parsed
