"""``key rekey``: a new master key for a vault. ``key sweep``: the end of what its device holds beside its file."""

from __future__ import annotations

from ..client import operations
from .options import As, HomeFolder, Json, PassphraseFile, Yes, at_home
from .passphrase import read_passphrase
from .terminal import ask, ask_name, note, result, spinner

__all__ = ["rekey", "sweep"]

_SHARES = (
    "Recovery shares that were made before are of no use for it any more: make new ones with 'cloister key recovery "
    "split'."
)
_KNOWN = (
    "Whoever opened such a copy knows the keys in it: 'cloister key rotate' replaces the KEK, 'cloister org rotate' "
    "the key that signs; the others stay."
)
_DANGER = (
    "If another copy of the vault file is in use, or a newer one that an older backup replaced, some of these are its "
    "keys, and what is wrapped under them is lost for good."
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
    Recovery shares end with the old one. A vault in a file asks for its passphrase, which stays the same."""
    with at_home(home) as place:
        acting = place.choose(party)
        asked = operations.needs_passphrase(place, acting)
        ask(f"Recovery shares of {acting} are of no use afterwards. Give its vault a new master key?", yes=yes)
        credential = read_passphrase(acting, passphrase_file, twice=False) if asked else None
        with spinner(f"rekeying {acting}"):
            done = operations.rekey(place, acting, credential)
    lines = [f"The vault of {acting} has a new master key, revision {done['revision']}.", _SHARES]
    result(done, [*lines, *done["remains"], _KNOWN], as_json=as_json)


def sweep(party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Destroy the keys that a party's device holds and its vault file does not name, as crashes and restorations leave
    them. Only where no other copy of the vault file is in use, because that one's keys look the same."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.find_orphans(place, acting)
        if found["orphans"]:
            if not found["witnessed"]:
                note(_UNWITNESSED)
            question = (
                f"This destroys {found['orphans']} keys in the device of {acting}. {_DANGER} Type the party's name:"
            )
            ask_name(question, acting, yes=yes)
        done = operations.sweep_orphans(place, acting, found["which"])
    lines = [f"{done['destroyed']} keys of {acting} are destroyed in the device."]
    if not done["destroyed"]:
        lines = [f"The device of {acting} holds no keys that the vault file does not name; nothing was done."]
    result(done, [*lines, *done["remains"]], as_json=as_json)
