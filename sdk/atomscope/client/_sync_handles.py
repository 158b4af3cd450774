"""An audit, an atom and a steered adapter of the service, for the blocking client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from atomscope.bundle.atom_list import AtomAttributes, AtomList
from atomscope.bundle.behaviour_list import BehaviourAttributes, BehaviourList
from atomscope.client import _audits, _core
from atomscope.client._attributions import attribute, make_query
from atomscope.client._auto_strength import GivenStrengths, Search
from atomscope.client._downloads import download_bundle, download_steered
from atomscope.client._evaluations import (
    EvaluationSettings,
    GivenDetector,
    Targets,
    evaluate,
    finish_evaluation,
    make_evaluation,
)
from atomscope.client._handles import AuditAttributes, SteeredAttributes
from atomscope.client._jobs import OnLook
from atomscope.client._progress import display
from atomscope.client._service import Service
from atomscope.client._transport import run
from atomscope.types.atoms import Atom, AuditReport, Behaviour
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.presets import PresetName
from atomscope.types.resources import Audit as AuditResource
from atomscope.types.resources import (
    DocumentMatch,
    Evaluation,
    Event,
)
from atomscope.types.resources import SteeredAdapter as SteeredResource
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Format, Unit


class Audit(AuditAttributes):
    """An audit of the service."""

    def __init__(self, service: Service, resource: AuditResource) -> None:
        super().__init__(resource)
        self._service = service
        self._atoms: AtomList[RemoteAtom] | None = None
        self._behaviours: BehaviourList[RemoteBehaviour] | None = None
        self._hierarchy: Hierarchy | None = None

    def refresh(self) -> Self:
        """Read it again."""
        self.resource = run(_audits.get(self._service, self.id))
        return self

    def cancel(self) -> Self:
        """Ask it to stop; it ends as `canceled` within a micro-batch of its workers."""
        self.resource = run(_core.cancel_audit(self._service, self.id))
        return self

    def delete(self) -> None:
        """Delete it with its bundle; only once it has ended."""
        run(_core.AUDITS.delete(self._service, self.id))

    def delete_gradients(self) -> Self:
        """Let it go of its gradients now; atoms, vectors and report stay, refits and `exact` end."""
        self.resource = run(_core.delete_gradients(self._service, self.id))
        return self

    def events(self, after: int = 0) -> list[Event]:
        """What has happened so far, after a sequence number."""
        return run(_audits.past_events(self._service, self.id, after))

    def follow(self, after: int = 0) -> Generator[Event]:
        """Events as they happen, to the end of the audit, through lost connections."""
        events = _audits.follow(self._service, self.id, after)
        try:
            while (event := run(_next(events))) is not None:
                yield event
        finally:
            run(events.aclose())

    def wait(
        self,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Wait until it has succeeded; `timeout` in seconds.

        Shows a progress bar on a terminal, or as `progress` says. Raises `AuditFailed`, `AuditCanceled`,
        and `WaitTimeout` (the audit goes on).
        """
        waiting = _audits.wait(self._service, self.id, timeout, on_event, display(progress))
        self.resource = run(waiting)
        return self

    @property
    def atoms(self) -> AtomList[RemoteAtom]:
        """Its atoms, by rank; read once."""
        if self._atoms is None:
            found = run(_core.audit_atoms(self._service, self.id))
            self._atoms = AtomList([RemoteAtom(self._service, self.id, atom) for atom in found])
        return self._atoms

    @property
    def behaviours(self) -> BehaviourList[RemoteBehaviour]:
        """Its behaviours, by rank; read once."""
        if self._behaviours is None:
            found = run(_core.audit_behaviours(self._service, self.id))
            self._behaviours = BehaviourList(
                [RemoteBehaviour(self._service, self.id, behaviour) for behaviour in found]
            )
        return self._behaviours

    @property
    def hierarchy(self) -> Hierarchy:
        """The tree over its atoms whose cut is its behaviours; read once."""
        if self._hierarchy is None:
            self._hierarchy = run(_core.audit_hierarchy(self._service, self.id))
        return self._hierarchy

    def report(self) -> AuditReport:
        return run(_core.audit_report(self._service, self.id))

    def download(self, folder: str | Path) -> Path:
        """Bring the whole bundle into a folder, every file's SHA-256 checked; goes on where it stopped."""
        return run(download_bundle(self._service, self.id, Path(folder)))

    def steer(
        self,
        strengths: GivenStrengths,
        name: str | None = None,
        *,
        format: Format = "adapter",
        unit: Unit = "norm",
        power: VectorPower | None = None,
        kl_budget: float | None = None,
        perplexity_budget: float | None = None,
        timeout: float | None = None,
    ) -> SteeredAdapter:
        """Have the adapter steered: atoms, their indices or behaviours to strengths; positive means more.

        Strengths are in units of the adapter's norm, or under `unit="alpha"` of the vectors as they are;
        `"auto"` and `"-auto"` are as far up and down as costs no more than `kl_budget` (0.5 nats per token on
        neutral documents) and, where it is given, `perplexity_budget` times their perplexity: an evaluation
        finds it, which may take until `timeout`. Each target is tried alone: several may cost more together.
        `power` is that of (lambda + damping) in the unprojection, by default the audit's. Raises
        `SteeringError` for a key that is no target, a strength that is none, and a budget that allows none,
        `EvaluationFailed` and `WaitTimeout`.
        """
        how = Search(kl_budget, perplexity_budget, timeout)
        created = run(_core.steer_audit(self._service, self.id, strengths, name, format, unit, power, how))
        return SteeredAdapter(self._service, created)

    def refit(
        self,
        *,
        preset: PresetName | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Audit:
        """Fit its stored gradients once more: a new audit, that extracts nothing.

        The settings are its own, or those of `preset`, those of `config` in their place; what decides the
        extraction cannot change. Raises `UsageError` before anything is sent.
        """
        asked = _core.refit_audit(self._service, self.resource, preset, config, name, metadata)
        return Audit(self._service, run(asked))

    def attribute(
        self,
        prompt: str | None = None,
        completion: str | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        exact: bool = False,
        documents: int = 20,
        timeout: float | None = None,
    ) -> AttributionResult:
        """Trace a prompt and its completion (or `messages`) to atoms, behaviours and documents.

        `exact` ranks every document by the cosine of whitened gradients; otherwise documents are ranked by
        their codes. Raises `AttributionFailed`, and `WaitTimeout` after `timeout` seconds (it goes on).
        """
        return self.ask(make_query(prompt, completion, messages, exact=exact, documents=documents), timeout)

    def evaluate(
        self,
        targets: Targets,
        strengths: Sequence[float] | Literal["auto"] = "auto",
        *,
        detector: GivenDetector | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **settings: Unpack[EvaluationSettings],
    ) -> EvaluationResult:
        """Steer atoms and behaviours to strengths of either sign; what that does, what it costs, and whether
        random directions do the same.

        `targets` are one or several of: an atom, a behaviour, `"7"`, `"behaviour:3"`, an `EvaluationTarget`
        or a dict of its fields. `detector` is that of targets without one, as a text too (`"yes_no"`,
        `"regex:PATTERN"`); without any, only the cost and the largest strength within `kl_budget` are found.
        `strengths` are in units of the adapter's norm; `settings` are the other fields of an
        `EvaluationQuery`. Raises `UsageError` before anything is sent, `EvaluationFailed`, and `WaitTimeout`
        after `timeout` seconds: it goes on, and `evaluation(id)` gives its result.
        """
        query = make_evaluation(targets, strengths, detector, self.id, **settings)
        return self.ask(query, timeout, progress)

    def evaluation(
        self,
        evaluation_id: str,
        timeout: float | None = None,
        progress: bool | None = None,
        on_look: OnLook[Evaluation] | None = None,
    ) -> EvaluationResult:
        """The result of an evaluation that was asked before, waited for if need be."""
        asked = finish_evaluation(self._service, self.id, evaluation_id, timeout, progress, on_look)
        return run(asked)

    @overload
    def ask(self, query: AttributionQuery, timeout: float | None = None) -> AttributionResult: ...

    @overload
    def ask(
        self,
        query: EvaluationQuery,
        timeout: float | None = None,
        progress: bool | None = None,
        on_look: OnLook[Evaluation] | None = None,
    ) -> EvaluationResult: ...

    def ask(
        self,
        query: AttributionQuery | EvaluationQuery,
        timeout: float | None = None,
        progress: bool | None = None,
        on_look: OnLook[Evaluation] | None = None,
    ) -> AttributionResult | EvaluationResult:
        """The same of a query that is made already; `on_look` is told of an evaluation as it goes on."""
        if isinstance(query, AttributionQuery):
            return run(attribute(self._service, self.id, query, timeout))
        return run(evaluate(self._service, self.id, query, timeout, progress, on_look))


class RemoteAtom(AtomAttributes):
    """An atom of an audit of the service."""

    def __init__(self, service: Service, audit_id: str, atom: Atom) -> None:
        super().__init__(atom, audit_id)
        self._service = service
        self._audit_id = audit_id

    def documents(
        self, sign: Literal["positive", "negative"] = "positive", limit: int | None = None
    ) -> list[DocumentMatch]:
        """Its active documents of one sign with their text, strongest first."""
        return run(_core.atom_documents(self._service, self._audit_id, self.index, sign, limit))

    def vector(self) -> dict[str, NDArray[np.float32]]:
        """Its steering vector: float32, named and shaped as the LoRA parameters."""
        return run(_core.atom_vector(self._service, self._audit_id, self.index))


class RemoteBehaviour(BehaviourAttributes):
    """A behaviour of an audit of the service."""

    def __init__(self, service: Service, audit_id: str, behaviour: Behaviour) -> None:
        super().__init__(behaviour, audit_id)
        self._service = service
        self._audit_id = audit_id

    def documents(self, limit: int | None = None) -> list[DocumentMatch]:
        """Its documents with their text, strongest first; `value` is the strength."""
        return run(_core.behaviour_documents(self._service, self._audit_id, self.index, limit))


class SteeredAdapter(SteeredAttributes):
    """A steered adapter, kept by the service until it is deleted."""

    def __init__(self, service: Service, resource: SteeredResource) -> None:
        super().__init__(resource)
        self._service = service

    def save(self, folder: str | Path) -> Path:
        """Write its files, such as a PEFT folder, and return the folder."""
        return run(download_steered(self._service, self.id, Path(folder)))

    def delete(self) -> None:
        run(_core.STEERED.delete(self._service, self.id))


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)
