"""What an owner stores at its stock key broker, made by its own broker: a key, and the contract that it is for.

The key leaves this vault in the plain, to the owner alone and on its word: what happens to it then no lease, no log and
no shredding of ours reaches. So it is logged first, and only for a contract in force that says where the key is going.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.routing import Route

from ..contracts import TRUSTEE_KEY_KIND, Asset, Contract, check_contract, trustee_key
from ..errors import Denied
from ..fields import Fields
from .admin import json_route
from .config import Limits
from .core import Core
from .http import Call

__all__ = ["TrusteeKeys", "trustee_routes"]


class TrusteeKeys:
    """Over the services of one broker."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def open_secret_documents(self, digest: bytes) -> list[dict[str, str]]:
        """For each own asset of the contract: its ``name``, the resource's ``path``, the ``document`` to store there.

        Raises Denied: a contract that is not known or not in force here, or that names no stock key broker of this
        party's; an asset whose key is gone, whose time is over, or of which there is a newer version. A release of
        this broker's own would be refused then, too. Untrusted where its state was put back (``Herald.check``).
        """
        core, owner = self._core, self._core.parties.card.name
        core.herald.check()  # a home that was put back may have lost a revocation
        with core.ledger.turn():  # a revocation comes before this or after it
            contract, repository = self._agreed(digest)
            assets = [asset for asset in contract.assets if asset.owner == owner]
            for asset in assets:
                self._check_kept(asset)  # all of them first: nothing was opened then
            for asset in assets:
                details: dict[str, str | int] = {"contract": digest.hex(), "name": asset.name, "purpose": "trustee"}
                core.ledger.append("asset.opened", target=asset.digest.hex(), details=details)
        return [
            {
                "document": self._document(contract, asset.digest),
                "name": asset.name,
                "path": f"{repository}/{TRUSTEE_KEY_KIND}/{asset.digest.hex()}",
            }
            for asset in assets
        ]

    def _agreed(self, digest: bytes) -> tuple[Contract, str]:
        """The contract, in force, and the repository of this party's stock key broker."""
        core = self._core
        contract = core.knowledge.contract(digest)
        if contract is None:
            raise Denied("contract.unknown", "This broker holds no contract of that digest; sign or store it first.")
        check_contract(contract, core.knowledge.contract_state(contract), now=core.clock())
        entry = contract.trustees.get(core.parties.card.name)
        if entry is None:
            raise Denied("trustee.none", "The contract names no stock key broker of this party's; its keys stay here.")
        return contract, entry.repository

    def _check_kept(self, asset: Asset) -> None:
        assets = self._core.assets
        assets.manifest(asset.digest)
        newest = assets.newest(asset.name)
        if newest is None or newest["digest"] != asset.digest.hex():
            raise Denied("asset.old", "A newer version of this asset exists; sign a new contract that names it.")
        # The contract's date, or an earlier one that the owner set since.
        if self._core.clock() >= min(asset.terms.keep_until, int(newest["keep_until"])):
            raise Denied("asset.retention", "The time for which this asset may be kept is over.")

    def _document(self, contract: Contract, asset: bytes) -> str:
        return trustee_key(contract.digest, asset, self._core.assets.unwrap_secret_dek(asset)).decode()


def trustee_routes(keys: TrusteeKeys, limits: Limits) -> list[Route]:
    def documents(call: Call) -> Any:
        f = Fields(call.body(), "request for a stock key broker's keys")
        digest = f.hex("contract", 32)
        f.done()
        return {"keys": keys.open_secret_documents(digest)}

    return [partial(json_route, "POST", limits=limits)("/v1/keys/trustee", documents)]
