"""What runs could not tell a server that was away: sending it after they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from pipeline.host.errors import UserError
from pipeline.host.redaction import refuse_credentials
from pipeline.settings.store_address import check_server
from pipeline.tracking.delivery import thing
from pipeline.tracking.failures import http_status, reason
from pipeline.tracking.outbox import Address, Outbox, kept, lock_of
from pipeline.tracking.patience import no_retries
from pipeline.tracking.sender import Courier, later_command, shown
from pipeline.tracking.store import CREDENTIALS, SERVER_VARIABLE, configured_server, point_at, quiet, same_server


@dataclass(frozen=True)
class Leftover:
    """What became of one outbox.

    Attributes:
        name: of the run.
        run_id: of the run.
        sent: how many things the server took.
        left: how many it has not yet.
        refused: how many it will not take, or nobody can read.
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
    """Send what is kept under `outputs`, of every run or of some.

    Without a `uri`, what is for the configured server is sent, and nothing else: the user and password would go along
    to whatever address a folder names.

    Raises:
        UserError: when there is nothing of such a run, and for an address that is no server's or has a password in it.
    """
    refuse_credentials(SERVER_VARIABLE, configured_server())
    if uri is not None:
        refuse_credentials("--tracking-uri", uri)
        check_server("--tracking-uri", uri)
    outboxes = {outbox.folder.name: outbox for outbox in kept(outputs)}
    for run_id in run_ids or []:
        if run_id not in outboxes:
            known = ", ".join(outboxes) or "none"
            raise UserError(f"{run_id}: nothing is kept of such a run in {shown(outputs / 'outbox')}; kept: {known}")
    return [send_leftover(outbox, uri) for name, outbox in outboxes.items() if name in (run_ids or outboxes)]


def send_leftover(outbox: Outbox, uri: str | None = None) -> Leftover:
    """Send what one run left to the server at `uri`, or to the configured one if it is for that.

    A run that never said how it ended was KILLED when it last said something. What is in the way of this one is told
    in what it gives, and holds up no other.
    """
    meant = outbox.address()
    if meant is None:
        return Leftover("?", outbox.folder.name, in_the_way=f"{shown(outbox.folder / 'run.json')} cannot be read")
    try:
        if uri is None and not same_server(meant.uri, configured_server()):
            why = (
                f"not sent: it was for {meant.uri}, which is not the configured server, {configured_server()}; if your "
                f"user and password may go there: {later_command(outbox.folder.parent.parent, meant.uri)}"
            )
            return Leftover(meant.name, meant.run_id, left=outbox.count_left(), in_the_way=why)
        with lock_of(outbox.folder).acquire(timeout=0):
            if not outbox.is_there:  # another sender was done with it a moment ago
                return Leftover(meant.name, meant.run_id)
            outbox = Outbox(outbox.folder)  # as it is now that nobody else sends
            return _send(outbox, Address(meant.uri if uri is None else uri, meant.run_id, meant.name), meant.uri)
    except Timeout:
        why = "its own run, or another process, is sending it"
        return Leftover(meant.name, meant.run_id, left=outbox.count_left(), in_the_way=why)
    except (OSError, UserError) as error:
        return Leftover(meant.name, meant.run_id, in_the_way=f"{shown(outbox.folder)}: {error}")


def _send(outbox: Outbox, address: Address, meant_for: str) -> Leftover:
    import mlflow

    quiet()
    no_retries()
    point_at(mlflow, address.uri)
    client = mlflow.MlflowClient(address.uri)
    try:  # a server that does not know the run would refuse every thing, one by one
        client.get_run(address.run_id)
    except mlflow.exceptions.MlflowException as error:
        why = _why(address.uri, error)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            other = "" if same_server(address.uri, meant_for) else f", which was for {meant_for}"
            why = f"{address.uri} does not know this run{other}; to forget it, delete {shown(outbox.folder)}"
        return Leftover(address.name, address.run_id, left=outbox.count_left(), in_the_way=why)
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
