"""How what a run says reaches its store: at once where that is a file, else by a thread that empties its outbox."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import shown
from pipeline.settings.store_address import is_server
from pipeline.tracking.delivery import Thing, deliver, thing
from pipeline.tracking.failures import in_the_way, waiting
from pipeline.tracking.leftovers import later_command
from pipeline.tracking.outbox import Address, Outbox, folder_of, lock_of

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LAST_PAUSE_S = 1.0, 10.0, 0.5
_TELL_EVERY_S, _LOCK_S = 10.0, 30.0
# Whoever interrupts a run wants it to end, and a cluster's scheduler does not ask twice.
_INTERRUPTED_PATIENCE_S = 10.0
# A server that is only slow gets so many times the patience that one that is away gets.
_BUSY = 10


class Direct:
    """Says everything at once, to a store that is a file of this machine.

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
        """A thing to say; they are said in order."""
        told = waiting(self._client.tracking_uri, self._patience_s, lambda: deliver(self._client, self.run_id, [said]))
        if told:
            terminal.say(told)

    def close(self, status: str, patience_s: float) -> None:
        """The run's end."""
        self.put(thing("status", status=status))
        if self._alive is not None:
            Path(self._alive.lock_file).unlink(missing_ok=True)
            self._alive.release()


class Posted:
    """Puts everything into the run's outbox, which a thread empties: a server that is away holds nobody up.

    Args:
        outputs: the folder of the runs.
        client: of MLflow's.
        address: whose outbox it is; it is made where there is none.
        page: of the run in a browser, where it is known.

    Raises:
        UserError: when another process is sending what an earlier one left in it.
    """

    def __init__(self, outputs: Path, client: Any, address: Address, page: str = "") -> None:
        self.run_id, self._outputs, self._client = address.run_id, outputs, client
        self._address, self._page = address, page
        folder = folder_of(outputs, address.run_id)
        self._lock = lock_of(folder)
        try:
            self._lock.acquire(timeout=_LOCK_S)
        except Timeout as error:
            raise UserError(f"{folder}: another process is sending it") from error
        self._outbox, self._told = Outbox.create(outputs, address), ""
        self._wake, self._closing, self._stop = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._work, name=f"outbox-{address.run_id}", daemon=True)
        self._thread.start()

    def put(self, said: Thing) -> None:
        """A thing to say; they are said in order.

        Raises:
            UserError: when it cannot be kept: the disk is full.
        """
        self._outbox.append(said)
        self._wake.set()

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        try:
            while not self._stop.is_set():
                self._wake.clear()
                closing = self._closing.is_set()  # asked first: what is said before the end is sent before it
                if self._send():
                    if closing:
                        return
                    pause = _FIRST_PAUSE_S
                    self._wake.wait()
                elif closing:
                    self._stop.wait(_LAST_PAUSE_S)
                else:
                    self._closing.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            try:
                self._outbox.delete_when_said()
            except OSError as error:
                terminal.warn(f"{shown(self._outbox.folder)}: cannot be deleted: {error.strerror or error}")
            finally:
                self._lock.release()

    def _send(self) -> bool:
        """Send what there is; whether nothing is in the way. The first failure of an outage is told, and its end."""
        try:
            self._outbox.send(self._client)
        except (
            Exception
        ) as error:  # of the server; or of the disk: what is said already is said again, which is no harm
            why = in_the_way(self._address.uri, error)
            if why != self._told:
                self._told = why
                terminal.warn(f"{why}: the run goes on, and what it says is kept in {shown(self._outbox.folder)}")
            return False
        if self._told:
            self._told = ""
            terminal.say(f"the tracking server {self._address.uri} is back: what was kept is sent")
        return True

    def close(self, status: str, patience_s: float) -> None:
        """The run's end; waits `patience_s` for a server that is away, longer for one that is only slow."""
        self.put(thing("status", status=status))
        longest_s = _BUSY * patience_s
        if status == "KILLED":
            patience_s = longest_s = min(patience_s, _INTERRUPTED_PATIENCE_S)
        self._closing.set()
        self._wake.set()
        try:
            self._wait(patience_s, longest_s)
        finally:
            self._stop.set()
            self._wake.set()
            count = self._outbox.count_left()
            if count:
                terminal.warn(
                    f"the tracking server {self._address.uri} does not have all of run {self._address.name}: {count} "
                    f"things are kept in {shown(self._outbox.folder)}; this sends them later: "
                    f"{later_command(self._outputs, self._address.uri)}"
                )
        self._thread.join(_LAST_PAUSE_S)  # the folder and its lock are the thread's to put away
        if not count and self._page:
            terminal.say(f"in MLflow: {self._page}")

    def _wait(self, patience_s: float, longest_s: float) -> None:
        """Wait until all is sent, while the server takes something at least every `patience_s`."""
        delivered, deadline = self._outbox.delivered, time.monotonic() + patience_s
        end = time.monotonic() + longest_s
        while True:
            self._thread.join(min(_TELL_EVERY_S, max(0.0, min(deadline, end) - time.monotonic())))
            if self._outbox.delivered > delivered:
                delivered, deadline = self._outbox.delivered, time.monotonic() + patience_s
            left = min(deadline, end) - time.monotonic()
            if left <= 0 or not self._thread.is_alive():
                return
            terminal.say(f"  {self._outbox.count_left()} things to send, waits up to {left:.0f} s for the server")


Channel: TypeAlias = Direct | Posted


def channel_to(uri: str, outputs: Path, run_id: str, name: str, patience_s: float) -> Channel:
    """The way to a run that is there already."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    if is_server(uri):
        return Posted(outputs, client, Address(uri, run_id, name))
    return Direct(client, run_id, patience_s)
