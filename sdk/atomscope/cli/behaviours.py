"""`atomscope behaviours list|show`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

import msgspec

from atomscope.cli.connect import number
from atomscope.cli.documents import documents_text, evidence_lines, exemplars_text, keyword_lines
from atomscope.cli.failures import NotFound
from atomscope.cli.hierarchy import tree_text
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import card
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.errors import UsageError
from atomscope.types.atoms import Behaviour
from atomscope.types.resources import DocumentMatch

if TYPE_CHECKING:
    from atomscope.bundle import BehaviourList


_SORTS = ("rank", "score", "coherence", "n_documents", "share", "index")


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("behaviours list", "the ranked behaviours", _configure_list, _list)
    registry.add_command("behaviours show", "one behaviour and its documents", _configure_show, _show)


def _configure_list(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--sort",
        choices=[*_SORTS, *(f"-{key}" for key in _SORTS)],
        help="-KEY, written --sort=-KEY, is the largest first (default: rank)",
    )
    parser.add_argument("--limit", type=number(int, 1), help="behaviours to print (default: all)")
    parser.add_argument(
        "--tree", action="store_true", help="the tree over the atoms from which the behaviours were cut"
    )


def _configure_show(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "behaviour", type=number(int, 0), metavar="INDEX", help="the behaviour's number (not its rank)"
    )
    parser.add_argument("--documents", type=number(int, 0), default=5, help="documents to print (default 5)")


def _list(args: Namespace, output: Output) -> int:
    if args.tree and (args.limit is not None or args.sort is not None):
        raise UsageError("--tree shows all of the tree: --limit and --sort have no meaning with it")
    with opened(args) as target:
        if args.tree:
            tree = target.hierarchy
            atoms = [item.atom for item in target.atoms]
            output.result(tree, tree_text(tree, atoms, [item.behaviour for item in target.behaviours]))
            return EXIT_DONE
        behaviours: BehaviourList[Any] = target.behaviours
        sort: Any = args.sort or "rank"
        behaviours = behaviours.sort_by(sort.removeprefix("-"), descending=sort.startswith("-"))
        shown = [_listed(item.behaviour) for item in behaviours[: args.limit]]
        output.result(shown, behaviours.table(args.limit))
    return EXIT_DONE


def _show(args: Namespace, output: Output) -> int:
    with opened(args) as target:
        behaviours: BehaviourList[Any] = target.behaviours
        try:
            behaviour = behaviours.get(args.behaviour)
        except KeyError as error:
            raise NotFound(
                f"there is no behaviour {args.behaviour}; `atomscope behaviours list` names them"
            ) from error
        found: list[DocumentMatch] = behaviour.documents(limit=args.documents) if args.documents else []
        shown = _listed(behaviour.behaviour)
        output.result({"behaviour": shown, "documents": found}, _text(shown, found))
    return EXIT_DONE


def _listed(behaviour: Behaviour) -> Behaviour:
    return msgspec.structs.replace(behaviour, documents=[])


def _text(behaviour: Behaviour, documents: list[DocumentMatch]) -> str:
    head = card(
        [
            ("behaviour", behaviour.index),
            ("label", behaviour.label),
            ("rank", behaviour.rank),
            ("score", f"{behaviour.score:.3f}"),
            *evidence_lines(behaviour.evidence),
            ("coherence", f"{behaviour.coherence:.3f}"),
            (
                "random sets",
                f"{behaviour.null_coherence:.3f} (95th percentile {behaviour.null_coherence_95:.3f})",
            ),
            ("documents", behaviour.n_documents),
            (
                "energy kept",
                None if behaviour.energy_retained is None else f"{behaviour.energy_retained:.1%}",
            ),
            ("share", f"the strongest behaviour of {behaviour.share:.1%} of the data"),
            ("atoms", ", ".join(map(str, behaviour.atoms))),
            *keyword_lines(behaviour.keywords, behaviour.prompt_keywords, behaviour.response_keywords),
        ]
    )
    exemplars = exemplars_text(behaviour.exemplars, "strength")
    return "\n\n".join([head, *exemplars, *documents_text(documents, "strength")])
