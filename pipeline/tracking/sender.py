"""Sends what is in an outbox, in order, for as long as it takes; a server that is away holds nobody up."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import Timeout

from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.tracking.delivery import Thing, deliver
from pipeline.tracking.failures import http_status, passes, reason
from pipeline.tracking.journal import UNREADABLE
from pipeline.tracking.outbox import Address, Batch, Outbox, folder_of, lock_of
from pipeline.tracking.store import CREDENTIALS, configured_server, same_server

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LAST_PAUSE_S = 1.0, 10.0, 0.5
_TELL_EVERY_S, _LOCK_S = 10.0, 30.0
# So often a server that answers otherwise may fail at one thing, until that is taken for the thing's fault.
_TRIES = 4


class Courier:
    """Says what is in an outbox, thing by thing.

    Attributes:
        delivered: how many things the server has taken.
    """

    def __init__(self, outbox: Outbox, client: Any, address: Address) -> None:
        self._outbox, self._client, self._address = outbox, client, address
        self._one_by_one_until = 0
        self._failures = 0
        self.delivered = 0

    def send(self, on_success: Callable[[], None] = lambda: None) -> Exception | None:
        """Send all there is; gives the failure that is in the way, where it may pass."""
        while True:
            batch = self._outbox.next_batch(one_by_one=self._one_by_one_until > 0)
            if batch is None:
                return None
            if batch.things[0]["kind"] == UNREADABLE:
                self._tell_aside("a line of its outbox cannot be read")
                self._outbox.set_aside(batch, "")
                self._pass(batch)
                continue
            try:
                told = deliver(self._client, self._address.run_id, batch.things)
            except Exception as error:
                if self._may_pass(error):
                    return error
                self._give_up(batch, error)
                continue
            self._failures = 0
            self.delivered += len(batch.things)
            self._outbox.mark_said(batch)
            self._pass(batch)
            on_success()
            if told:
                terminal.say(told)

    def _pass(self, batch: Batch) -> None:
        if batch.end >= self._one_by_one_until:
            self._one_by_one_until = 0

    def _may_pass(self, error: Exception) -> bool:
        """Whether it is the server's state that is in the way, and not the thing."""
        status = http_status(error)
        if not passes(status):
            return False
        if status is not None and status >= 500 and self._answers():
            self._failures += 1
            return self._failures < _TRIES
        return True

    def _answers(self) -> bool:
        """Whether the server knows the run at this moment."""
        try:
            self._client.get_run(self._address.run_id)
        except Exception:
            return False
        return True

    def _give_up(self, batch: Batch, error: Exception) -> None:
        """Put a thing aside that the server will not take; of several, find out which."""
        self._failures = 0
        if len(batch.things) > 1:
            self._one_by_one_until = batch.end
            return
        what = batch.things[0].get("name") or batch.things[0]["kind"]
        self._tell_aside(f"the tracking server refuses '{what}': {reason(error)}")
        self._outbox.set_aside(batch, reason(error))
        self._pass(batch)

    def _tell_aside(self, why: str) -> None:
        """Tell of the first thing that is put aside, and where they are."""
        if self._outbox.count_refused() == 0:
            folder = shown(self._outbox.folder)
            terminal.warn(f"run {self._address.name}: {why}: what is not sent is kept in {folder}/refused.jsonl")


class Sender:
    """The thread that empties a run's outbox, which it makes where there is none, while the run goes on.

    Raises:
        UserError: when another process is sending what an earlier one left in it.
    """

    def __init__(self, outputs: Path, client: Any, address: Address) -> None:
        self._address, self._lock = address, lock_of(folder_of(outputs, address.run_id))
        self._wake, self._closing, self._stop, self._done = (threading.Event() for _ in range(4))
        self._told = ""
        try:
            self._lock.acquire(timeout=_LOCK_S)
        except Timeout as error:
            raise UserError(f"{folder_of(outputs, address.run_id)}: another process is sending it") from error
        self._outbox = Outbox.create(outputs, address)
        self._courier = Courier(self._outbox, client, address)
        self._thread = threading.Thread(target=self._work, name=f"outbox-{address.run_id}", daemon=True)
        self._thread.start()

    def put(self, thing: Thing) -> None:
        """Keep a thing and see that it is sent.

        Raises:
            UserError: when it cannot be kept: the disk is full.
        """
        self._outbox.append(thing)
        self._wake.set()

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        try:
            while not self._stop.is_set():
                self._wake.clear()
                failure = self._send()
                if failure is None:
                    if self._closing.is_set() and not self._outbox.count_left():
                        return
                    pause = _FIRST_PAUSE_S
                    self._wake.wait()
                else:
                    self._tell(failure)
                    self._closing.wait(pause)
                    if self._closing.is_set():
                        self._stop.wait(_LAST_PAUSE_S)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            try:
                self._outbox.delete_when_said()
            except OSError as error:
                terminal.warn(f"{shown(self._outbox.folder)}: cannot be deleted: {error.strerror or error}")
            finally:
                self._lock.release()
                self._done.set()

    def _send(self) -> Exception | None:
        try:
            return self._courier.send(on_success=self._tell_back)
        except (UserError, OSError) as error:  # the disk: what is said already would be said again, which does no harm
            return error

    def _tell(self, failure: Exception) -> None:
        """Tell the first failure of an outage."""
        status = http_status(failure)
        said = _in_the_way(self._address.uri, status, failure)
        if said != self._told:
            self._told = said
            terminal.warn(f"{said}: the run goes on, and what it says is kept in {shown(self._outbox.folder)}")

    def _tell_back(self) -> None:
        if self._told:
            self._told = ""
            terminal.say(f"the tracking server {self._address.uri} is back: what was kept is being sent")

    def close(self, patience_s: float, longest_s: float) -> None:
        """Wait until all is sent; what is left stays on disk.

        Args:
            patience_s: how long the server may take nothing.
            longest_s: how long to wait in all for a server that takes one thing after the other.
        """
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
                    f"{later_command(self._outbox.folder.parent.parent, self._address.uri)}"
                )
        # Done, or about to be: the folder and its lock are the thread's to put away.
        self._done.wait(_LAST_PAUSE_S)
        if count == 0 and self._address.page:
            terminal.say(f"in MLflow: {self._address.page}")

    def _wait(self, patience_s: float, longest_s: float) -> None:
        end = time.monotonic() + longest_s
        deadline, delivered = min(end, time.monotonic() + patience_s), self._courier.delivered
        while not self._done.wait(min(_TELL_EVERY_S, max(0.0, deadline - time.monotonic()))):
            if self._courier.delivered > delivered:
                deadline, delivered = min(end, time.monotonic() + patience_s), self._courier.delivered
            left = deadline - time.monotonic()
            if left <= 0:
                return
            terminal.say(f"  {self._outbox.count_left()} things to send, waits up to {left:.0f} s for the server")


def _in_the_way(uri: str, status: int | None, failure: Exception) -> str:
    if status in (401, 403):
        return f"the tracking server {uri} refuses the user and password (HTTP {status}); they come from {CREDENTIALS}"
    if status is None:
        return f"the tracking server {uri} cannot be told: {reason(failure)}"
    return f"the tracking server {uri} is away"


def later_command(outputs: Path, uri: str) -> str:
    """The command that sends what is kept under `outputs` for the server at `uri`."""
    words = ["python", "-m", "pipeline.outbox"]
    if outputs != PROJECT_ROOT / "outputs":
        words += ["--outputs", shown(outputs)]
    if not same_server(uri, configured_server()):
        words += ["--tracking-uri", uri]
    return shlex.join(words)


def shown(path: Path) -> str:
    """A path as short as it can be typed."""
    return str(path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path)
