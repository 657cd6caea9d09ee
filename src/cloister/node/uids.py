"""Unprivileged users for brokers, agents and sandboxes, without touching /etc/passwd.

Like systemd's ``DynamicUser=``: a user id from 61184 to 65519 (the range that systemd sets aside for this), found
from a hash of the home folder and the role, so that a restart finds the same id and the files still belong to
it. Claims in a folder under /run keep two homes on one machine from sharing an id.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ..crypto import frame, sha256
from ..errors import Denied, Internal, Misuse, Unavailable

__all__ = ["FIRST_UID", "LAST_UID", "allocate_uid", "drop_privileges", "who_can_traverse"]

FIRST_UID, LAST_UID = 61184, 65519
_COUNT = LAST_UID - FIRST_UID + 1
_CLAIMS = Path("/run/cloister/uids")
_PR_SET_NO_NEW_PRIVS = 38


def _in_passwd(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def live_uids(proc: Path = Path("/proc")) -> frozenset[int]:
    """Real, effective, saved and file-system user ids of all running processes."""
    uids: set[int] = set()
    for status in proc.glob("[0-9]*/status"):
        # A process may end between the listing and the reading; then its ids are in use no more.
        with contextlib.suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("Uid:"):
                    uids.update(int(field) for field in line.split()[1:])
    return frozenset(uids)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two agents that start at once must not pick the same id."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        raise Misuse("uid.claims", f"Claims on user ids can't be written to {folder}; run this as root.") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _owner(claim: Path) -> str | None:
    try:
        return claim.read_text()
    except FileNotFoundError:
        return None


def allocate_uid(home: Path, role: str, *, claims: Path = _CLAIMS) -> int:
    """The user id (also used as group id) of ``role`` in ``home``: the same one each time, and nobody else's.

    Passed over are ids with a passwd entry, ids that another home or role has claimed (unless that home is gone),
    and unclaimed ids that a process runs under. Raises Misuse if claims can't be written, Unavailable if none is free.
    """
    home = home.resolve()
    mine = f"{home}\n{role}\n"
    start = int.from_bytes(sha256(frame("cloister/uid/v1", str(home), role))[:8], "big") % _COUNT
    with _locked(claims):
        live = live_uids()
        for step in range(_COUNT):
            uid = FIRST_UID + (start + step) % _COUNT
            owner = _owner(claims / str(uid))
            if owner == mine:
                return uid
            abandoned = owner is not None and not Path(owner.splitlines()[0]).exists()
            if (owner is None or abandoned) and uid not in live and not _in_passwd(uid):
                (claims / str(uid)).write_text(mine)
                return uid
    raise Unavailable("uid.none", f"No unprivileged user id is free; remove stale claims from {claims}.")


def drop_privileges(uid: int, gid: int) -> None:
    """Become ``uid`` and ``gid`` for good, without other groups and without a way back through set-user-id files.

    Call it before any thread starts: the ids then hold for the whole process. Raises Misuse for root's ids,
    Denied if the caller may not change, Internal if root could be regained.
    """
    if uid == 0 or gid == 0:
        raise Misuse("uid.root", "Dropping privileges to root drops nothing; give an unprivileged user and group.")
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise Denied(
            "uid.change", "Only root can change to another user; start this as root or as that user."
        ) from None
    # Without this a set-user-id program on the host would be a way back.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Internal("uid.nnp", "The kernel refused no-new-privileges; a kernel of 3.5 or later is needed.")
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        os.umask(0o077)
        return
    raise Internal("uid.regained", "Root could be regained after dropping it; this process must not go on.")


def who_can_traverse(path: Path, uid: int, gid: int) -> None:
    """Return if user ``uid`` in group ``gid`` may walk to ``path`` (and enter it, if it is a folder).

    Otherwise Misuse names the first folder that blocks, and what to do.

    Looks at permission bits only; an access-control list can only be judged by trying.
    """
    current = Path("/")
    for part in (*path.resolve().parts[1:], None):
        try:
            info = current.stat()
        except OSError as error:
            raise Misuse("path.missing", f"{current} can't be reached ({error.strerror}); check the path.") from None
        if stat.S_ISDIR(info.st_mode) and not _may_enter(info, uid, gid):
            raise Misuse(
                "path.traverse",
                f"User {uid} can't enter {current} on the way to {path}; allow it with 'chmod o+x {current}'"
                " or use a folder that is not under a private home.",
            )
        if part is not None:
            current = current / part


def _may_enter(info: os.stat_result, uid: int, gid: int) -> bool:
    # The kernel takes the first class that fits and looks no further.
    if uid == info.st_uid:
        return bool(info.st_mode & stat.S_IXUSR)
    if gid == info.st_gid:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)
