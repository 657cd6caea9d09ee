"""What the sandbox starts. Exit statuses: docs/spec/workload.md."""

from __future__ import annotations

import os

from ..errors import CloisterError
from .identity import harden_process
from .job import Place, run_job
from .leases import EXIT_LEASE_LOST, LEASE_CODES


def main() -> int:
    """Run the job. No exception's text is printed: it could quote data."""
    harden_process()
    try:
        run_job(Place())
    except CloisterError as fault:
        return EXIT_LEASE_LOST if fault.code in LEASE_CODES else fault.exit_code
    except Exception:  # noqa: BLE001 - reported as code only, see Telemetry.failure
        return 1
    return 0


if __name__ == "__main__":
    # Not sys.exit: what is to last was written and renamed by now, and taking the training libraries down object by
    # object takes seconds, during which plaintext is in memory and renewals may still be under way.
    os._exit(main())
