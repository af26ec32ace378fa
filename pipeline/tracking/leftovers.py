"""What runs could not tell a server that was away: sending it after they ended."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from pipeline.host.errors import UserError
from pipeline.host.files import resolved, shown
from pipeline.host.redaction import refuse_credentials
from pipeline.settings.store_address import check_server
from pipeline.tracking.delivery import thing
from pipeline.tracking.failures import in_the_way, reason
from pipeline.tracking.outbox import Address, Outbox, kept, lock_of
from pipeline.tracking.store import SERVER_VARIABLE, client_of, configured_server, same_server


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
    folders = {folder.name: folder for folder in kept(outputs)}
    for run_id in run_ids or []:
        if run_id not in folders:
            known = ", ".join(folders) or "none"
            raise UserError(f"{run_id}: nothing is kept of such a run in {shown(outputs / 'outbox')}; kept: {known}")
    return [send_leftover(folder, uri) for name, folder in folders.items() if name in (run_ids or folders)]


def send_leftover(folder: Path, uri: str | None = None) -> Leftover:
    """Send what one run left to the server at `uri`, or to the configured one if it is for that.

    A run that never said how it ended was KILLED when it last said something. What is in the way of this one is told
    in what it gives, and holds up no other.
    """
    try:
        meant = Outbox(folder).address()
    except UserError as error:
        return Leftover("?", folder.name, in_the_way=str(error))
    left, why = 0, ""
    try:
        left = Outbox(folder).count_left()
        if uri is None and not same_server(meant.uri, configured_server()):
            why = (
                f"not sent: it was for {meant.uri}, which is not the configured server, {configured_server()}; if your "
                f"user and password may go there: {later_command(folder.parent.parent, meant.uri)}"
            )
        else:
            with lock_of(folder).acquire(timeout=0):
                return _send(Outbox(folder), meant, meant.uri if uri is None else uri)
    except Timeout:
        why = "its own run, or another process, is sending it"
    except (OSError, UserError, ValueError) as error:
        why = f"{shown(folder)}: {error}"
    return Leftover(meant.name, meant.run_id, left=left, in_the_way=why)


def _send(outbox: Outbox, meant: Address, uri: str) -> Leftover:
    import mlflow

    if not outbox.is_there:  # another sender was done with it a moment ago
        return Leftover(meant.name, meant.run_id)
    client, why = client_of(uri), ""
    try:
        client.get_run(meant.run_id)  # a server that does not know the run would refuse every thing, one by one
        if outbox.last_status() is None:
            killed = thing("status", status="KILLED")
            outbox.append(killed | {"at": outbox.last_time() or killed["at"]})
        outbox.retry_refused()
        outbox.send(client)
    except Exception as error:
        why = f"{in_the_way(uri, error)} ({reason(error)})"
        if isinstance(error, mlflow.exceptions.MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            other = "" if same_server(uri, meant.uri) else f", which was for {meant.uri}"
            why = f"{uri} does not know this run{other}; to forget it, delete {shown(outbox.folder)}"
    left, refused, status = outbox.count_left(), outbox.count_refused(), outbox.last_status() or ""
    outbox.delete_when_said()
    return Leftover(meant.name, meant.run_id, outbox.delivered, left, refused, status, why)


def later_command(outputs: Path, uri: str) -> str:
    """The command that sends what is kept under `outputs` for the server at `uri`."""
    words = ["python", "-m", "pipeline.outbox"]
    if outputs != resolved("outputs"):
        words += ["--outputs", shown(outputs)]
    if not same_server(uri, configured_server()):
        words += ["--tracking-uri", uri]
    return shlex.join(words)
