"""Key release: challenge, evidence, key. The wrapper of I/O around ``decision``, in the order that nothing may change.

1. every party's signature, against our pins      4. the binding: nonce, report, instance, contract, job
2. the contract is in force, all parties say so   5. asset, purpose, recipe, budget
3. the evidence is authentic and appraised        6. logged, and the log's proof verified     7. the key
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from ..attestation import Binding, Claims, check_nonce, device_data, make_nonce, result_token
from ..audit import Receipt
from ..contracts import check_signatures
from ..crypto import canonical_json, frame, hpke_seal, jwe_encrypt, random_bytes
from ..errors import CloisterError, Denied
from .core import Core
from .decided import Decided
from .decision import (
    Instance,
    JobRecord,
    Lease,
    Request,
    Resource,
    Standing,
    reference_values,
    relevant_approvals,
)
from .init_data import check_shown
from .judging import Judges
from .kbs_request import Attestation, Knock, read_attestation, read_knock, resource_named, sent_nonce
from .knowledge import budgets_change, contract_change, instance_change, job_change
from .privacy import left_words, reserve
from .rates import RATE_CODES, Rates, too_many
from .release_words import names_of, newest_checkpoint, release_details
from .rootkeys import check_shares
from .sessions import Attested, Channel, Session, Sessions
from .state import Change
from .stock import StockGuests

__all__ = ["KeyReleases"]


class KeyReleases:
    """The three calls of a workload: ``challenge``, ``attest``, ``resource``. Without ``stock`` no stock guest is
    served."""

    def __init__(self, core: Core, sessions: Sessions, judges: Judges, stock: StockGuests | None = None) -> None:
        self._core = core
        self._sessions = sessions
        self._judges = judges
        self._stock = stock
        # Of the name and the key that this process answers with, which stay as long as it runs.
        self._name, self._pin = core.parties.card.name, core.parties.card.keys.tls_pin
        limits = core.limits
        self._rates = Rates(limits.contract_rate, limits.contract_burst, names=limits.rate_names)
        self._nameless = Rates(limits.stock_rate, limits.stock_burst, names=limits.rate_names)
        sessions.on_stolen = self._stolen

    def challenge(self, body: Any, *, channel: Channel | None = None) -> tuple[str, dict[str, Any]]:
        """(cookie, KBS Challenge). Nothing is promised yet; what can be refused without evidence is refused here.

        ``channel``: the connection, whose client must have proved the key that the request wants to attest; the
        session works on connections of that client only. None: a call inside this process.
        """
        now = self._core.clock()
        request, decided = None, Decided()
        try:
            knock = read_knock(body, self._core.limits)
            if knock.request is None:
                return self._greet_stock(knock, channel, now)
            request = knock.request
            self._paced(request)
            self._judges.check_platform(request.tee)
            decided.knock(request, self._standing(request), now=now)
            context = self._binding(request).ctx()
            if channel is not None:
                channel.check(request.signing)
        except CloisterError as refusal:
            if refusal.code in RATE_CODES:
                raise
            self._refuse("attest.refused", refusal, request, "knock" if self._vouched(request) else None)
            raise
        nonce = make_nonce(context, random_bytes(32))
        session = Session(request, now, nonce, channel, knock.version, decided=decided)
        cookie = self._sessions.open(session, now=now)
        return cookie, {"extra-params": {"selected-hash-algorithm": "sha256"}, "nonce": nonce}

    def _greet_stock(self, knock: Knock, channel: Channel | None, now: int) -> tuple[str, dict[str, Any]]:
        if self._stock is None:
            raise Denied("kbs.stock-guest", "This broker serves guests that name a contract and a job only.")
        self._stock.check_knock(knock)
        self._paced(None, "" if channel is None else channel.source)
        nonce = base64.b64encode(random_bytes(32)).decode()
        session = Session(None, now, nonce, channel, knock.version, knock.tee)
        cookie = self._sessions.open(session, now=now)
        return cookie, {"extra-params": {"selected-hash-algorithm": "sha256"}, "nonce": nonce}

    def attest(self, cookie: str | None, body: Any) -> str:
        """The attestation result as an EAR token. The challenge is used up, also by evidence that fails."""
        nonce = sent_nonce(body)
        session = self._sessions.live(cookie, now=self._core.clock())
        request = session.asked
        self._paced(request, session.source)
        try:
            challenge = self._sessions.take_challenge(session, nonce, now=self._core.clock())
            message = read_attestation(body, session.version)
            if request is None:
                request, claims, standing = self._admit_stock(session, challenge, message)
            else:
                claims, standing = self._verify(session, request, challenge, message)
        except CloisterError as refusal:
            self._refuse("attest.refused", refusal, session.asked, "attest")
            raise
        details = {**names_of(request), "attester": claims.attester, "level": claims.level, "tee": claims.tee}
        details["policy"] = standing.policy.digest
        # Without waiting: it is durable before the entry of any key that the session gets, for the log keeps the order.
        self._core.ledger.append_soon("attest.ok", target=request.instance.hex(), details=details)
        self._sessions.admit(session, Attested(claims, message.tee_pubkey), now=self._core.clock())
        return result_token(
            claims,
            reference_values(request.contract, standing.approvals),
            policy=standing.policy,
            approvals=[
                envelope.to_bytes().decode()
                for envelope in relevant_approvals(request.contract, claims, standing.approvals)
            ],
            signer=self._core.keys.receipt,
            now=self._core.clock(),
            ttl=self._core.limits.token_seconds,
            tee_pubkey=message.tee_pubkey,
        )

    def resource(self, cookie: str | None, party: str | None, kind: str, tag: str) -> bytes:
        """A KBS resource response (JWE). Asking again in the session gives the identical bytes.

        ``party`` None is KBS's default repository: this broker's own party.
        """
        session, attested = self._sessions.attested(cookie, now=self._core.clock())
        request = session.request
        try:
            self._paced(request)
            if party is not None and party != self._name:
                raise Denied("resource.unknown", "This broker serves its own party's resources only.")
            resource = resource_named(kind, tag)
            if session.stock is not None and resource.kind != "asset-key":
                raise Denied("resource.unknown", "There is no such resource.")
            # Also before a stored answer: what was revoked since is not handed out again.
            self._decide(session, attested, resource)
            return self._answer(session, attested, resource)
        except CloisterError as refusal:
            if refusal.code in RATE_CODES:
                raise
            self._refuse("key.refused", refusal, request, "key", resource=f"{kind}/{tag}"[:200])
            raise

    def _paced(self, request: Request | None, source: str = "") -> None:
        """One contract's requests a second. Before it is known what stock guests ask for: those from one address, and
        all of them together, of which no address has more than its own.

        Raises Unavailable("rate.contract" or "rate.address"), which is not logged: it is no verdict. The digest counts
        before anything is verified. Whoever has a contract's text can use its share up; they are its parties and the
        operator, and each of them can stop its runs anyway.
        """
        if request is None and (wait := self._nameless.take(source)):
            raise too_many("rate.address", wait)
        wait = self._rates.take("stock" if request is None else request.contract.digest.hex())
        if wait:
            raise too_many("rate.contract", wait)

    def _stolen(self, session: Session) -> None:
        refusal = Denied("session.stolen", "A session's cookie came over a connection of another client.")
        self._refuse("key.refused", refusal, session.asked, "stolen")

    def _answer(self, session: Session, attested: Attested, resource: Resource) -> bytes:
        return session.once(
            f"{resource.kind}/{resource.tag}",
            lambda: self._release(session, attested, resource),
            limit=self._core.limits.answers,
        )

    # Steps 1 to 5.

    def _standing(self, request: Request) -> Standing:
        self._core.herald.check()
        return self._core.knowledge.standing(request.contract, request.job.digest, request.instance)

    def _binding(self, request: Request) -> Binding:
        return Binding(
            purpose=request.purpose,
            broker_pin=self._pin,
            contract=request.contract.digest,
            job=request.job.digest,
            instance=request.instance,
            hpke_public=request.hpke,
            signing_public=request.signing,
            lease_sequence=request.sequence,
        )

    def _verify(self, session: Session, request: Request, nonce: str, message: Attestation) -> tuple[Claims, Standing]:
        """Steps 1 to 5 with evidence, without an asset yet. ``nonce`` is the session's own."""
        # 4. The nonce commits to what this session asked for, and the report to nonce, key and event log.
        check_nonce(nonce, self._binding(request).ctx())
        report = message.report(nonce)
        now = self._core.clock()
        # 3. Authentic and fresh; then all that a decision can say by now.
        device = device_data(nonce, message.tee_pubkey)
        claims = self._judges.verify(message.evidence(request.tee), report, device, now=now)
        if message.init_data is not None:
            # Nothing here depends on it, the nonce binds contract and job. But what is shown must be true.
            check_shown(message.init_data, claims.devices)
        standing = self._standing(request)
        session.decided.admission(request, claims, standing, now=now)
        return claims, standing

    def _admit_stock(self, session: Session, nonce: str, message: Attestation) -> tuple[Request, Claims, Standing]:
        """The same decision about a guest whose hardware, instead of its nonce, names contract and job."""
        if self._stock is None or session.stock is None:
            raise Denied("kbs.stock-guest", "This broker serves guests that name a contract and a job only.")
        request, claims = self._stock.admit(session.stock, nonce, message, now=self._core.clock())
        session.asked = request  # what the log shall name, whatever is decided; nothing goes out before ``attested``
        now, standing = self._core.clock(), self._standing(request)  # the other parties took their time to answer
        session.decided.admission(request, claims, standing, now=now)
        return request, claims, standing

    def _decide(self, session: Session, attested: Attested, resource: Resource) -> tuple[int, Standing, Lease]:
        """Steps 1 to 5 for one key, by what is known now."""
        now, standing = self._core.clock(), self._standing(session.request)
        lease = session.decided.release(session.request, attested.claims, standing, resource, now=now)
        if resource.kind != "asset-key":
            check_shares(self._core.ledger)
        return now, standing, lease

    # Steps 6 and 7.

    def _release(self, session: Session, attested: Attested, resource: Resource) -> bytes:
        core, request = self._core, session.request
        with core.ledger.turn():
            now, standing, lease = self._decide(session, attested, resource)
            details = self._details(session, attested, resource, lease)
            changes = core.ledger.state.glance(lambda: self._changes(request, standing, lease))
            known = standing.job is not None
            charge = reserve(request.contract, request.job, standing.owner, standing.budgets, admitted=known)
            if charge is not None:
                # In the change that admits the run: there is neither without the other, and no run is charged twice.
                changes.append(budgets_change({**standing.budgets, charge.name: charge.after}))
                details |= charge.details()
            # 6. In the log, durable, and its inclusion proof verified, before any key is touched.
            receipt = core.ledger.commit("key.released", target=resource.digest.hex(), details=details, changes=changes)
        if request.contract.platform.witness_quorum:
            witnesses = request.contract.witnesses(self._name)
            receipt = core.herald.gather(receipt.index, request.contract.platform.witness_quorum, witnesses)
        # 7. Only now the key itself.
        if session.stock is not None:
            # It has no HPKE key, and reads the plaintext of the JWE as the resource itself.
            return jwe_encrypt(attested.tee_pubkey, core.assets.unwrap_secret_dek(resource.digest))
        body = self._sealed(request, resource, lease, receipt)
        body["lease"] = {"expires": lease.expires, "seconds": lease.expires - now, "sequence": lease.sequence}
        body["checkpoint"] = newest_checkpoint(standing.job)
        return jwe_encrypt(attested.tee_pubkey, canonical_json(body))

    def _details(self, session: Session, attested: Attested, resource: Resource, lease: Lease) -> dict[str, str | int]:
        details = release_details(session.request, attested.claims, resource, lease)
        if session.stock is not None:
            details["binding"] = "init-data"
        epoch = self._core.assets.epoch(resource.digest)
        return details if epoch is None else {**details, "kek_epoch": epoch}

    def _changes(self, request: Request, standing: Standing, lease: Lease) -> list[Change]:
        """What a release changes: the run is admitted, its newest instance is this one, and an older one is cut."""
        core, contract = self._core, request.contract
        changes = []
        row = core.knowledge.contract_row(contract.digest)
        if row is None or not row["complete"]:
            text = contract.envelope.to_bytes().decode()
            changes.append(contract_change(contract, row, envelope=text, complete=1))
        if standing.instance is None:
            job = request.job.digest
            for old in core.knowledge.instances(job=job.hex(), cut=0):  # those that are cut already stay so
                changes.append(instance_change(replace(old, cut=True)))
            fresh = Instance(request.instance, job, contract.digest, request.signing, request.hpke, lease, cut=False)
            checkpoint = standing.job.checkpoint if standing.job is not None else None
            changes.append(instance_change(fresh))
            text = request.job.envelope.to_bytes().decode()
            changes.append(job_change(contract.digest, JobRecord(job, text, request.instance, checkpoint)))
        return changes

    def _sealed(self, request: Request, resource: Resource, lease: Lease, receipt: Receipt) -> dict[str, Any]:
        """The key under the workload's HPKE key, bound to contract, job, resource, this log entry and the lease."""
        core, contract, job = self._core, request.contract.digest, request.job.digest
        info = frame("cloister/key/v1", contract, job, resource.digest, receipt.leaf_hash, lease.expires)
        if resource.kind == "asset-key":
            secret = core.assets.unwrap_secret_dek(resource.digest)
        else:
            secret = core.keys.checkpoint_share(self._name, contract, job, resource.tag)
        sealed = hpke_seal(request.hpke, secret, info)
        return {"receipt": receipt.to_wire(), "sealed": base64.b64encode(sealed).decode()}

    def _vouched(self, request: Request | None) -> bool:
        """Whether our party and all others signed the contract behind a request: no stranger can make up such ones."""
        parties = self._core.parties
        if request is None or self._name not in request.contract.parties:
            return False
        try:
            check_signatures(request.contract, parties.pinned())
        except CloisterError:
            return False  # decides only which bucket the refusal counts in
        return True

    def _refuse(
        self, kind: str, refusal: CloisterError, request: Request | None, stage: str | None, **more: str
    ) -> None:
        """``stage`` is None for a stranger; a session was vouched for when it was opened."""
        target = request.instance.hex() if request is not None else "unread request"
        details = {**names_of(request), **more} if request is not None else more
        if request is not None and refusal.code == "asset.shredded":
            # For the owner, whose log this is. Nobody else is told why.
            details = {
                **details,
                "shredded_because": self._core.assets.shredded_because(*request.job.assets),
            }
        if request is not None and refusal.code == "privacy.budget":
            name, budgets = request.job.recipe.data, self._core.knowledge.budgets()
            details = {**details, **(left_words(name, budgets[name]) if name in budgets else {})}
        about = (request.contract.digest, stage) if request is not None and stage is not None else None
        self._core.ledger.refuse(kind, refusal, target=target, details=details, about=about)
