"""The node: the host agent that starts workloads, and everything that it needs to do so.

The tour: ``image`` builds the root file system that a workload runs from (``packages`` and ``elf`` say what it
needs), ``measure`` turns it and the launch specification into one digest. ``profile`` is the sandbox's fixed layout,
``seccomp`` its system calls, ``limits`` and ``cgroups`` its share of the machine; ``sandbox`` starts one through
``bubblewrap`` and ends it. ``socket_server`` (with ``socket_requests`` and ``tunnel``) is the one socket out of it.
``uids`` finds unprivileged users. ``attesters`` says who makes evidence: ``attester`` with ``tpm`` or ``swtpm``, or in
a confidential guest ``tsm`` through ``configfs``; ``gpus`` adds what GPUs say, through ``nvml``. ``agent`` and
``launcher`` put all of it together, ``control_link`` talks to the control plane. docs/spec/sandbox.md says what holds.

The attester isn't re-exported: it needs the TPM software stack, which a host without a TPM may lack.
"""

from .image import build_image
from .limits import Limits, LimitsReport
from .measure import TreeEntry, diff_trees, measure_tree, measurement, tree_digest, tree_manifest
from .sandbox import Sandbox, SandboxSpec, launch, launch_spec, workload_argv
from .socket_server import SocketLimits, SocketServer
from .uids import allocate_uid, drop_privileges, who_can_traverse

__all__ = [
    "Limits",
    "LimitsReport",
    "Sandbox",
    "SandboxSpec",
    "SocketLimits",
    "SocketServer",
    "TreeEntry",
    "allocate_uid",
    "build_image",
    "diff_trees",
    "drop_privileges",
    "launch",
    "launch_spec",
    "measure_tree",
    "measurement",
    "tree_digest",
    "tree_manifest",
    "who_can_traverse",
    "workload_argv",
]
