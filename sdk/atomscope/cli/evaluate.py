"""`atomscope evaluate`: what turning atoms and behaviours up and down does, beside what chance does."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from atomscope.bundle import Bundle
from atomscope.cli.config_file import read_settings
from atomscope.cli.connect import number, out_folder
from atomscope.cli.evaluation_text import evaluation_text
from atomscope.cli.failures import Interrupted
from atomscope.cli.in_process import add_base_model, check_base_model, in_process
from atomscope.cli.output import json_text
from atomscope.cli.registry import EXIT_DONE, EXIT_ERROR, Output
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.client import Audit
from atomscope.client._evaluations import DETECTORS, make_evaluation
from atomscope.errors import UsageError
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.resources import Evaluation
from atomscope.types.steering import UNITS

_SETTINGS = (
    "unit",
    "power",
    "kl_budget",
    "perplexity_budget",
    "prompts",
    "random_directions",
    "answers",
    "seed",
)
"""Options that are fields of the query as they are."""
_ASKED = ("targets", "detector", "strengths", "max_new_tokens", *_SETTINGS)
"""Options that say what is asked, each None or empty where it is not given."""
_FIELDS = frozenset({*EvaluationQuery.__struct_fields__, "detector"})


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command(
        "evaluate",
        "steer atoms and behaviours, and see what that does and what it costs",
        _configure,
        partial(_run, tree=tree),
    )


def _configure(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="an atom (7) or a behaviour (behaviour:3)"
    )
    parser.add_argument(
        "--detector",
        help=f"how a behaviour is told in an answer: {', '.join(DETECTORS)}; without one, only what steering "
        "costs is measured",
    )
    parser.add_argument(
        "--strengths",
        type=_strengths,
        metavar="auto|NUMBERS",
        help="such as -0.2,-0.1,0.1,0.2; auto (default): the largest within the budget, its half and quarter",
    )
    parser.add_argument("--unit", choices=UNITS, help="what strengths are in: norms of the adapter (default)")
    parser.add_argument(
        "--power", choices=("+1/2", "0", "-1/2"), help="power of the curvature (--power=-1/2)"
    )
    parser.add_argument(
        "--kl-budget", type=number(float, 0), help="nats per token that steering may cost (default 0.5)"
    )
    parser.add_argument(
        "--perplexity-budget",
        type=number(float, 1),
        help="how many times the perplexity of neutral documents may be what it was (default: any)",
    )
    parser.add_argument("--prompts", type=number(int, 0), help="prompts of each kind to take from documents")
    parser.add_argument("--random-directions", type=number(int, 0), help="to compare with (default 20)")
    parser.add_argument("--max-new-tokens", type=number(int, 0), help="tokens of an answer (default 48)")
    parser.add_argument("--answers", type=number(int, 0), help="answers of each kind to show (default 3)")
    parser.add_argument("--seed", type=number(int, 0))
    parser.add_argument("--config", type=Path, metavar="FILE", help="the whole query instead, JSON or TOML")
    parser.add_argument("--id", metavar="EVALUATION", help="of an audit: one that was asked before (evl_...)")
    parser.add_argument("--out", type=_out_file, metavar="FILE", help="where the result goes too, as JSON")
    parser.add_argument("--figures", type=_figures, metavar="FOLDER", help="where a PNG for each target goes")
    parser.add_argument(
        "--report", type=_out_file, metavar="FILE", help="where an HTML page of it goes, figures included"
    )
    add_base_model(parser)


def _run(args: Namespace, output: Output, *, tree: CommandTree) -> int:
    if args.figures is not None or args.report is not None:
        from atomscope.figures import require_matplotlib  # noqa: PLC0415  (only where there are figures)

        require_matplotlib()
    query = _query(args)
    with opened(args) as target:
        check_base_model(args, target)
        if not isinstance(target, Bundle):
            query, found = _asked(target, query, args, output)
        elif query is None:
            raise UsageError("--id is for an audit of the service: a bundle keeps no evaluations")
        else:
            with in_process(tree.load_runner, "evaluate", output) as (runner, on_progress):
                found = runner.evaluate(target, args.base_model, query, on_progress)
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    output.result(found, evaluation_text(found))
    return _kept(found, query, args, output)


def _query(args: Namespace) -> EvaluationQuery | None:
    """The query of the options or the file; None for an evaluation that was asked before."""
    given = [name for name in _ASKED if getattr(args, name) not in (None, [])]
    if args.id is not None:
        _alone("--id", given if args.config is None else ["config"])
        return None
    if args.config is not None:
        _alone("--config", given)
        return _of_file(args.config)
    if not args.targets:
        raise UsageError("a TARGET is expected, such as behaviour:3; or --config FILE, or --id EVALUATION")
    settings: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS if name in given}
    if args.max_new_tokens is not None:
        settings["sampling"] = {"max_new_tokens": args.max_new_tokens}
    return make_evaluation(args.targets, args.strengths or "auto", args.detector, **settings)


def _alone(option: str, others: list[str]) -> None:
    if others:
        told = "a TARGET" if others[0] == "targets" else f"--{others[0].replace('_', '-')}"
        raise UsageError(f"{option} says all that is asked: {told} has no meaning beside it")


def _of_file(path: Path) -> EvaluationQuery:
    settings = read_settings(path)
    unknown = sorted(settings.keys() - _FIELDS)
    if unknown:
        raise UsageError(f"{path}: `{unknown[0]}` is no field of an evaluation")
    if "targets" not in settings:
        raise UsageError(f"{path}: `targets` is missing")
    try:
        return make_evaluation(**settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _asked(
    audit: Audit, query: EvaluationQuery | None, args: Namespace, output: Output
) -> tuple[EvaluationQuery, EvaluationResult]:
    progress = False if output.json else None
    seen: list[Evaluation] = []

    def on_look(now: Evaluation) -> None:
        if not seen:
            seen.append(now)
            output.note(f"evaluation {now.id}")

    try:
        if query is None:
            found = audit.evaluation(args.id, args.timeout, progress, on_look)
        else:
            found = audit.ask(query, args.timeout, progress, on_look)
    except KeyboardInterrupt as error:
        if not seen:
            raise
        raise Interrupted(
            f"no longer waiting; evaluation {seen[0].id} goes on. `atomscope evaluate {audit.id} --id "
            f"{seen[0].id}` comes back to it"
        ) from error
    return seen[0].query, found


def _kept(found: EvaluationResult, query: EvaluationQuery, args: Namespace, output: Output) -> int:
    """Write what is to be written; the result itself has been printed, so that nothing is lost."""
    budgets = query.kl_budget, query.perplexity_budget
    try:
        if args.out is not None:
            temporary = args.out.with_name(f"{args.out.name}.{os.getpid()}.tmp")
            temporary.write_text(json_text(found, ascii_only=True) + "\n", encoding="utf-8")
            temporary.replace(args.out)
            output.note(str(args.out))
        if args.figures is not None:
            from atomscope.figures import plot_evaluation  # noqa: PLC0415

            for path in plot_evaluation(found, args.figures, *budgets):
                output.note(str(path))
        if args.report is not None:
            from atomscope.evaluation_page import write_evaluation  # noqa: PLC0415

            output.note(str(write_evaluation(found, args.report, *budgets)))
    except OSError as error:
        output.complain(f"atomscope: the result could not be written: {error}")
        return EXIT_ERROR
    return EXIT_DONE


def _strengths(text: str) -> list[float] | str:
    if text == "auto":
        return text
    try:
        return [float(item) for item in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(f"not auto, and not numbers such as -0.2,0.1: {text!r}") from error


def _out_file(text: str) -> Path:
    path = out_folder(text)
    if path.exists():
        raise ArgumentTypeError(f"{text!r} exists: name a new file")
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"{str(path.parent)!r} is not a folder")
    return path


def _figures(text: str) -> Path:
    out_folder(str(Path(text) / "figure.png"))  # a bundle itself is no place for them either
    return out_folder(text)
