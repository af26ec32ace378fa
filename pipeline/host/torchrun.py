"""What torchrun tells a process that it has started; without torchrun, of a process alone. Imports no torch."""

from __future__ import annotations

import atexit
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence


def world_size() -> int:
    """How many processes run together."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """This process's number among them; 0 writes, logs and speaks."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process's number among those of its machine."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many of them are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def unreachable_name() -> str | None:
    """What this machine's name stands for where that is no address at which gloo could meet the other machines.

    gloo listens at the first address of the name, unless GLOO_SOCKET_IFNAME says otherwise, and Debian's /etc/hosts
    has 127.0.1.1 for it. None: the processes can meet, as far as can be seen from here.
    """
    if world_size() <= local_world_size() or os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    try:
        address = str(socket.getaddrinfo(socket.gethostname(), None)[0][4][0])
    except socket.gaierror:
        return "no address"
    return address if ipaddress.ip_address(address.split("%")[0]).is_loopback else None


def interfaces() -> Sequence[str]:
    """The network interfaces of this machine, without the one to itself."""
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def leave() -> None:
    """End this process, if it is one of several, once it has done all: at once, and well.

    gloo's threads may hold the tensors of the last message for a moment longer, and DistributedDataParallel keeps them
    alive. Python, taken down in that moment, is aborted by them (pytorch/pytorch#179291), and torchrun would report a
    failure of what succeeded.
    """
    if world_size() > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def _number(variable: str, alone: int) -> int:
    # Other launchers leave such variables too; this one torchrun alone.
    return int(os.environ.get(variable, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone
