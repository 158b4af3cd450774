"""What the API asks of the control worker."""

from __future__ import annotations

from typing import Protocol


class WorkQueue(Protocol):
    """Tells the control worker that rows want its attention.

    Rows are the truth: every call comes after its transaction was committed, and control's sweep finds
    whatever a lost message was about. A method raises when the broker cannot be reached.
    """

    def audit_created(self, project_id: str, audit_id: str) -> None:
        """An audit is `queued`."""
        ...

    def cancel_requested(self, project_id: str, audit_id: str) -> None:
        """An audit is `canceling`."""
        ...

    def job_added(self, project_id: str, job_id: str) -> None:
        """A job is `queued`."""
        ...

    def deletions_added(self) -> None:
        """There are key prefixes whose objects are to be removed."""
        ...

    def hub_import_requested(self, project_id: str, model_id: str) -> None:
        """A model is `importing`."""
        ...

    def ping(self) -> None:
        """Raise unless the broker answers."""
        ...
