"""How what a run says reaches its store: at once, or through the outbox of the run where the store is a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from pipeline.host import terminal
from pipeline.settings.store_address import is_server
from pipeline.tracking.database import Answer, while_locked
from pipeline.tracking.delivery import Thing, deliver, thing
from pipeline.tracking.living import let_go
from pipeline.tracking.outbox import Address
from pipeline.tracking.patience import no_retries
from pipeline.tracking.sender import Sender

# Whoever interrupts a run wants it to end, and a cluster's scheduler does not ask twice.
_INTERRUPTED_PATIENCE_S = 10.0
# A server that is only slow gets so many times the patience that one that is away gets.
_BUSY = 10


class Channel(Protocol):
    """Takes what a run has to say, in order.

    Attributes:
        run_id: of the run, in its store.
    """

    run_id: str

    def put(self, said: Thing) -> None:
        """A thing to say."""

    def close(self, status: str, patience_s: float) -> None:
        """The run's end; waits `patience_s` for a server that is away, longer for one that is only slow."""


class Direct:
    """Says everything at once: the store is a file of this machine.

    Args:
        client: of MLflow's.
        run_id: of the run.
        patience_s: how long another process may have that file locked.
        alive: the lock that says that the run's process lives.
    """

    def __init__(self, client: Any, run_id: str, patience_s: float, alive: FileLock | None = None) -> None:
        self._client, self._patience_s, self._alive = client, patience_s, alive
        self.run_id = run_id

    def put(self, said: Thing) -> None:
        told = self._ask(lambda: deliver(self._client, self.run_id, [said]))
        if told:
            terminal.say(told)

    def close(self, status: str, patience_s: float) -> None:
        self._ask(lambda: self._end(status))
        if self._alive is not None:
            let_go(self._alive)

    def _end(self, status: str) -> None:
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            mlflow.end_run(status)
        else:
            self._client.set_terminated(self.run_id, status)

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        return while_locked(self._client.tracking_uri, self._patience_s, ask)


class Posted:
    """Puts everything into the run's outbox, which a thread empties."""

    def __init__(self, outputs: Path, address: Address) -> None:
        import mlflow

        no_retries()
        self.run_id = address.run_id
        self._sender = Sender(outputs, mlflow.MlflowClient(address.uri), address)

    def put(self, said: Thing) -> None:
        self._sender.put(said)

    def close(self, status: str, patience_s: float) -> None:
        self.put(thing("status", status=status))
        if status == "KILLED":
            patience_s = min(patience_s, _INTERRUPTED_PATIENCE_S)
            self._sender.close(patience_s, longest_s=patience_s)
        else:
            self._sender.close(patience_s, longest_s=_BUSY * patience_s)


def channel_to(uri: str, outputs: Path, run_id: str, name: str, patience_s: float) -> Channel:
    """The way to a run that is there already."""
    import mlflow

    if is_server(uri):
        return Posted(outputs, Address(uri, run_id, name))
    return Direct(mlflow.MlflowClient(uri), run_id, patience_s)
