"""All targets by name, and the parsers that are no target, each with the reason."""

from __future__ import annotations

from typing import Final

from .attestation_targets import attestation_targets
from .document_targets import document_targets
from .registry import Target

__all__ = ["ELSEWHERE", "TARGETS"]

TARGETS: Final[dict[str, Target]] = {target.name: target for target in (*attestation_targets(), *document_targets())}

_OWNER = "the owner's own words or file"
_FILES = "reads files; hostile ones are in tests/adversarial/test_hostile_inputs_*.py"
_WITHIN = "reached through the target of the document that holds it"
_VERIFIED = "inside a vault's file: the target of that file goes through it"
_DEVICE = "what a kernel, a store or a service gives; a reader of bytes, not of their form"
_STATE = "a row of the broker's own state; a damaged one is refused whole"
ELSEWHERE: Final[dict[str, str]] = {
    "cloister.audit.tiles.decode_hashes": "cuts bytes of an exact length into equal parts",
    "cloister.broker.privacy.Budget.read": _STATE,
    "cloister.broker.privacy.read_budgets": _STATE,
    "cloister.cli.passphrase.read_passphrase": _OWNER,
    "cloister.client.agreements.read_agreement": _WITHIN,
    "cloister.client.known.KnownContract.read": _WITHIN,
    "cloister.client.reference_values.read_reference_values": _WITHIN,
    "cloister.client.times.parse_day": _OWNER,
    "cloister.client.times.parse_span": _OWNER,
    "cloister.contracts.contract.Asset.read": _WITHIN,
    "cloister.contracts.contract.Gate.read": _WITHIN,
    "cloister.contracts.contract.Output.read": _WITHIN,
    "cloister.contracts.contract.Platform.read": _WITHIN,
    "cloister.contracts.forecast.shape.read_shape": _OWNER,
    "cloister.contracts.rules.PrivacyRule.read": _WITHIN,
    "cloister.contracts.rules.RecipeRule.read": _WITHIN,
    "cloister.contracts.trustees.TrusteeEntry.read": _WITHIN,
    "cloister.contracts.party.PartyKeys.read": _WITHIN,
    "cloister.contracts.recipe.recipe.Recipe.from_document": _WITHIN,
    "cloister.contracts.recipe.fields.Asset.read": _WITHIN,
    "cloister.contracts.recipe.fields.Choice.read": _WITHIN,
    "cloister.contracts.recipe.fields.Integer.read": _WITHIN,
    "cloister.contracts.recipe.fields.Number.read": _WITHIN,
    "cloister.contracts.recipe.fields.Parameters.read": _WITHIN,
    "cloister.contracts.recipe.fields.Reader.read": _WITHIN,
    "cloister.contracts.recipe.fields.Targets.read": _WITHIN,
    "cloister.contracts.recipe.fields.Truth.read": _WITHIN,
    "cloister.keys.drivers.aws_client.read_credential": _OWNER,
    "cloister.keys.drivers.gcp_client.read_account": _OWNER,
    "cloister.keys.entries.DeviceKey.parse": _VERIFIED,
    "cloister.keys.entries.Kek.parse": _VERIFIED,
    "cloister.keys.entries.Recovery.parse": _VERIFIED,
    "cloister.keys.entries.Secret.parse": _VERIFIED,
    "cloister.keys.entries.parse_unlock": _VERIFIED,
    "cloister.node.configfs.ConfigFs.read": _DEVICE,
    "cloister.node.configfs.Files.read": _DEVICE,
    "cloister.sealed.reader.SealedObject.read": _DEVICE,
    "cloister.sealed.stores.bucket.FsspecBucket.read": _DEVICE,
    "cloister.sealed.stores.ports.Bucket.read": _DEVICE,
    "cloister.sealed.stores.s3.S3Bucket.read": _DEVICE,
    "cloister.workload.script.interface.Folder.read": _DEVICE,
    "cloister.workload.text.tokenizer.read_tokenizer": _FILES,
    "cloister.workload.training.tensors.read_tensors": _FILES,
}
