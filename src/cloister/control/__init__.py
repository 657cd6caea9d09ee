"""The control plane: catalogue, store and queue. It sees ciphertext and metadata, and is trusted for availability only.

The tour: ``requests`` (who asks; pure), ``states`` (a job's life; pure), ``directory`` (cards by name), ``objects``
and ``sink`` (sealed objects), ``storage`` (where they lie, if elsewhere), ``agreements`` (contracts, signatures,
revocations), ``jobs`` (what parties do), ``runs`` (what the node does), ``service`` (all of it together), ``api``
(HTTP), ``server`` (the process). ``embedded`` starts every part on one machine (each by ``processes``, with what
``brokers`` says), and ``supervisor_socket`` is where its owner asks it to.
"""

from .limits import Limits
from .service import ControlPlane
from .storage import Storage

__all__ = ["ControlPlane", "Limits", "Storage"]
