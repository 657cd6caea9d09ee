"""``key rekey``: a new master key for a vault. ``key sweep``: the end of what its device holds beside its file."""

from __future__ import annotations

from typing import Any

from ..client import operations
from .options import As, HomeFolder, Json, PassphraseFile, Yes, at_home
from .passphrase import read_passphrase
from .terminal import ask, ask_name, note, result, spinner

__all__ = ["rekey", "sweep"]

_SHARES = (
    "Recovery shares that were made before are of no use for it any more: make new ones with 'cloister key recovery "
    "split'."
)
_BACKUP = "Backups of the vault file from before put nothing back in use any more: make a new one now."
_BACKUP_BUT = (
    "Backups of the vault file from before put nothing back in use any more but with recovery shares of their time: "
    "make a new one now."
)
_KNOWN = (
    "Whoever opened such a copy knows the keys in it: 'cloister key rotate' replaces the KEK, 'cloister org rotate' "
    "the key that signs; the others stay."
)
_DANGER = (
    "If another copy of the vault file is in use, some of these are its keys, and what is wrapped under them is lost "
    "for good: stop its broker first, or it makes itself a root key again."
)
_SHARES_ONLY = (
    "A copy whose root key is destroyed opens with its recovery shares, if there are any, and with nothing else."
)
_UNWITNESSED = "No peer confirmed at start that this is the newest state: make sure that this home is no older copy."


def rekey(
    party: As = None,
    passphrase_file: PassphraseFile = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Seal a vault's file under a new master key, for when an old copy and a way to open it may be in wrong hands.
    Recovery shares and backups end with the old one. A vault in a file asks for its passphrase; that stays the same."""
    with at_home(home) as place:
        acting = place.choose(party)
        asked = operations.needs_passphrase(place, acting)
        split = operations.was_split(place, acting)
        lost = "Backups and recovery shares" if split else "Backups"
        ask(f"{lost} of {acting}'s vault are of no use afterwards. Give it a new master key?", yes=yes)
        credential = read_passphrase(acting, passphrase_file, twice=False) if asked else None
        with spinner(f"rekeying {acting}"):
            done = operations.rekey(place, acting, credential)
    lines = [f"The vault of {acting} has a new master key, revision {done['revision']}."]
    lines += [_BACKUP_BUT, _SHARES] if done["recovery_split"] else [_BACKUP]
    result(done, [*lines, *done["remains"], _KNOWN], as_json=as_json)


def sweep(party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Destroy the keys that a party's device holds and its vault file does not name, as crashes and restorations leave
    them. Only where no other copy of the vault file is in use, because that one's keys look the same. All but root keys
    are kept while any asset's key is under a KEK that the file lacks, as after an older backup was restored."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.find_orphans(place, acting)
        if found["roots"] or found["keys"]:
            if not found["witnessed"]:
                note(_UNWITNESSED)
            danger = " ".join([_DANGER, *([_SHARES_ONLY] if found["roots"] else []), *_kept(found)])
            question = f"This destroys {_counted(found)} in the device of {acting}. {danger} Type the party's name:"
            ask_name(question, acting, yes=yes)
        done = operations.sweep_orphans(place, acting, found["which"])
    if done["destroyed"]:
        lines = [f"{_counted(done)} of {acting} are destroyed in the device."]
    elif done["kept"]:
        lines = [f"Nothing of {acting} was destroyed in the device."]
    else:
        lines = [f"The device of {acting} holds no keys that the vault file does not name; nothing was done."]
    result(done, [*lines, *_kept(done), *done["remains"]], as_json=as_json)


def _counted(found: dict[str, Any]) -> str:
    return f"{found['roots']} root keys of other copies and {found['keys']} other keys"


def _kept(done: dict[str, Any]) -> list[str]:
    if not done["kept"]:
        return []
    return [
        f"{done['kept']} other keys are kept: the vault file lacks KEKs that keys of assets are under, and these may "
        "be among them. Restore a newer copy of the file if you find one, else shred those versions and sweep again: "
        f"{', '.join(done['assets'])}."
    ]
