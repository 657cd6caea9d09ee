"""What a PKCS#11 token's errors mean here: which a new session may mend, and what a person is told."""

from __future__ import annotations

from typing import Any, NoReturn

from pkcs11 import TokenFlag
from pkcs11 import exceptions as p11

from ...errors import Denied, Misuse, Unavailable

__all__ = ["LOST", "STALE", "WRONG_PIN", "Missing", "check_tries", "give_up", "locked_pin", "wrong_pin"]

# The session, the token or the module went away: what a new session may mend. SoftHSM reports a vanished token as a
# general error; an error without a class of its own in python-pkcs11 is one of (de)initialization.
LOST = (
    p11.DeviceError,
    p11.DeviceRemoved,
    p11.FunctionFailed,
    p11.GeneralError,
    p11.NoSuchToken,
    p11.SessionClosed,
    p11.SessionHandleInvalid,
    p11.SlotIDInvalid,
    p11.TokenNotPresent,
    p11.TokenNotRecognised,
    p11.UserNotLoggedIn,
)
# A handle that was kept names nothing (any more): look for the object again.
STALE = (
    p11.KeyHandleInvalid,
    p11.ObjectHandleInvalid,
    p11.UnwrappingKeyHandleInvalid,
    p11.WrappingKeyHandleInvalid,
)
_UNSUPPORTED = (
    p11.AttributeReadOnly,
    p11.AttributeTypeInvalid,
    p11.AttributeValueInvalid,
    p11.DomainParamsInvalid,
    p11.FunctionNotSupported,
    p11.KeyNotWrappable,
    p11.KeyTypeInconsistent,
    p11.KeyUnextractable,
    p11.MechanismInvalid,
    p11.MechanismParamInvalid,
    p11.TemplateIncomplete,
    p11.TemplateInconsistent,
    p11.TokenWriteProtected,
)
WRONG_PIN = (p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange)


class Missing(Exception):
    """What was looked for is not on the token. A token that is being removed looks just so: ``Connection.call`` looks
    once more over a fresh connection before it lets this out."""


def check_tries(flags: Any) -> None:
    """Don't spend the last try before a lock on a PIN that may be the wrong one: a person has to."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        raise locked_pin()
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise Denied(
            "vault.pin_last_try",
            "The token locks after one more wrong PIN; log in once with its own tool, which resets the count.",
        )


def wrong_pin() -> Denied:
    return Denied("vault.pin", "The token refuses this PIN; each wrong one counts towards locking it.")


def locked_pin() -> Denied:
    return Denied(
        "vault.pin_locked",
        "The token's user PIN is locked, expired or was never set; its security officer has to set a new one.",
    )


def give_up(error: p11.PKCS11Error) -> NoReturn:
    name = type(error).__name__
    if isinstance(error, _UNSUPPORTED):
        raise Misuse(
            "driver.unsupported", f"The token can't do what this driver needs ({name}); see docs/vaults.md."
        ) from None
    raise Unavailable("vault.device", f"The token failed ({name}); look at its own log and try again.") from None
