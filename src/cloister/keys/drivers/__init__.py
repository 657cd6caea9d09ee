"""What can keep a vault's KEKs: one module for each, loaded only when a vault names it.

The tour: ``file`` (under the vault's own master key), ``tpm`` and ``pkcs11`` (devices), ``transit``, ``aws``, ``gcp``
and ``azure`` (services). Each is a ``KekDriver`` and has ``open_driver(options, credential)``. Operators read
docs/vaults.md.
"""

from .choosing import DRIVERS, DriverConfig, open_driver

__all__ = ["DRIVERS", "DriverConfig", "open_driver"]
