"""What runs could not tell a server that was away: sending it after they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from pipeline.errors import UserError
from pipeline.tracking.delivery import thing
from pipeline.tracking.failures import http_status, reason
from pipeline.tracking.outbox import Address, Outbox, kept
from pipeline.tracking.sender import Courier, shown
from pipeline.tracking.store import CREDENTIALS, no_retries, quiet


@dataclass(frozen=True)
class Leftover:
    """What became of one outbox.

    Attributes:
        name: of the run.
        run_id: of the run.
        sent: how many things the server took.
        left: how many it has not yet.
        refused: how many it will not take.
        status: how the run ended.
        in_the_way: why something is left, in one line; empty where nothing is.
    """

    name: str
    run_id: str
    sent: int = 0
    left: int = 0
    refused: int = 0
    status: str = ""
    in_the_way: str = ""


def send_leftovers(outputs: Path, run_ids: list[str] | None = None, uri: str | None = None) -> list[Leftover]:
    """Send what is kept under `outputs`, of every run or of some, to its server or to the one at `uri`.

    Raises:
        UserError: when there is nothing of such a run.
    """
    outboxes = {outbox.folder.name: outbox for outbox in kept(outputs)}
    for run_id in run_ids or []:
        if run_id not in outboxes:
            known = ", ".join(outboxes) or "none"
            raise UserError(f"{run_id}: nothing is kept of such a run in {shown(outputs / 'outbox')}; kept: {known}")
    return [send_leftover(outbox, uri) for name, outbox in outboxes.items() if name in (run_ids or outboxes)]


def send_leftover(outbox: Outbox, uri: str | None = None) -> Leftover:
    """Send what one run left; a run that never said how it ended was KILLED when it last said something."""
    import mlflow

    address = outbox.address()
    if address is None:
        return Leftover("?", outbox.folder.name, in_the_way=f"{shown(outbox.folder / 'run.json')} cannot be read")
    address = Address(uri or address.uri, address.run_id, address.name)
    try:
        with outbox.lock.acquire(timeout=0):
            if not outbox.folder.is_dir():  # another sender was done with it a moment ago
                return Leftover(address.name, address.run_id)
            outbox = Outbox(outbox.folder)  # as it is now that nobody else sends
            quiet()
            no_retries()
            mlflow.set_tracking_uri(address.uri)
            return _send(outbox, address, mlflow.MlflowClient(address.uri))
    except Timeout:
        why = "its own run, or another process, is sending it"
        return Leftover(address.name, address.run_id, left=outbox.count_left(), in_the_way=why)


def _send(outbox: Outbox, address: Address, client: object) -> Leftover:
    if outbox.last_status() is None:
        outbox.append(thing("status", status="KILLED") | {"at": outbox.last_time() or thing("status")["at"]})
    outbox.retry_refused()
    status = outbox.last_status() or ""
    courier = Courier(outbox, client, address)
    failure = courier.send()
    left, refused = outbox.count_left(), outbox.count_refused()
    outbox.delete_when_said()
    why = _why(address.uri, failure) if failure is not None else ""
    return Leftover(address.name, address.run_id, courier.delivered, left, refused, status, why)


def _why(uri: str, failure: Exception) -> str:
    status = http_status(failure)
    if status in (401, 403):
        return f"the tracking server {uri} refuses the user and password (HTTP {status}): set {CREDENTIALS}"
    return f"the tracking server {uri} is away: {reason(failure)}"
