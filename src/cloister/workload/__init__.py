"""The trusted code: what runs in the sandbox and sees plaintext. It imports nothing above itself.

The tour: ``job`` is one run from top to bottom. ``identity`` (keys made in memory), ``node_link`` (the one socket),
``broker_client`` and ``key_session`` (the KBS protocol), ``acquire`` (all owners' keys), ``leases`` (keeping them),
``pipeline`` over ``data``, ``text``, ``training`` and ``evaluation``, ``checkpoints`` (sealed, resumable),
``telemetry`` (what may leave meanwhile) and ``release`` (what leaves in the end).

Nothing is exported: the package is started (``python -m cloister.workload``), not called. The specification is
docs/spec/workload.md.
"""

__all__: list[str] = []
