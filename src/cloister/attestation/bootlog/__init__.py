"""Boot event logs: what firmware measured, and what may be believed of it once a register is signed.

The tour: ``format`` reads and writes logs, ``replaying`` computes the registers that a log must lead to, ``efi`` reads
measured UEFI variables, ``secureboot`` decides whether secure boot was on. Order of use: ``parse_log``, then
``check_replay`` against signed registers, and only then ``secure_boot`` or ``BootEvent.believed``.
"""

from .efi import Variable, parse_variable
from .format import MAX_EVENTS, MAX_LOG, BootEvent, BootLog, encode_log, parse_log
from .replaying import check_replay, replay, start_locality
from .secureboot import SecureBoot, secure_boot

__all__ = [
    "MAX_EVENTS",
    "MAX_LOG",
    "BootEvent",
    "BootLog",
    "SecureBoot",
    "Variable",
    "check_replay",
    "encode_log",
    "parse_log",
    "parse_variable",
    "replay",
    "secure_boot",
    "start_locality",
]
