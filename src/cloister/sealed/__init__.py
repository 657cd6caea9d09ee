"""Sealed objects: a folder of ciphertext with a signed manifest, named by the manifest's digest.

The tour: ``models`` (the manifest and its strict form), ``paths`` (which names files may have), ``binding`` (what
ties a file to its object, and the pure verification of a manifest), ``writer`` (``seal_object``), ``reader``
(``open_sealed``: every byte checked, random access) over ``ports`` (where ciphertext comes from), ``folder`` and
``members``, ``roots`` (what was read is what was signed), ``checker`` (completeness without a key), ``fs`` (fsspec, for
pandas and pyarrow), ``resume`` (sealing that survives a kill), ``stores`` (folders, S3, a cache). The format is
docs/spec/sealed-object.md.
"""

from .binding import associated_data, check_dek, dek_commitment, file_key, parents_digest, verify_manifest
from .checker import check_ciphertext
from .folder import MANIFEST_NAME, FolderSource, OwnFolder, member_name, read_envelope
from .fs import SealedFileSystem
from .models import ASSET_CLASSES, MANIFEST_TYPE, SUITE, FileEntry, Manifest, SealIdentity
from .paths import check_path, folder_files
from .ports import ObjectSource
from .reader import SealedFile, SealedObject, open_sealed
from .writer import Progress, Sealed, SignCallback, seal_object

__all__ = [
    "ASSET_CLASSES",
    "MANIFEST_NAME",
    "MANIFEST_TYPE",
    "SUITE",
    "FileEntry",
    "FolderSource",
    "Manifest",
    "ObjectSource",
    "OwnFolder",
    "Progress",
    "SealIdentity",
    "Sealed",
    "SealedFile",
    "SealedFileSystem",
    "SealedObject",
    "SignCallback",
    "associated_data",
    "check_ciphertext",
    "check_dek",
    "check_path",
    "dek_commitment",
    "file_key",
    "folder_files",
    "member_name",
    "open_sealed",
    "parents_digest",
    "read_envelope",
    "seal_object",
    "verify_manifest",
]
