"""Contracts: who the parties are, what they agreed on, and the pure decision that every broker takes for itself.

The tour: ``party`` (cards and pins), ``terms`` (what travels with an asset), ``contract`` (the document and
its signatures), ``rules`` (what it asks of recipes), ``recipe`` (what a run may do), ``documents`` (jobs, status
statements, revocations, permits), ``decision`` (may this run have this asset?), ``trustees`` (owners whose keys come
from a stock key broker), ``outputs`` (may this output leave?), ``requests`` (signed HTTP requests).
"""

from .contract import (
    CONTRACT_TYPE,
    LEVELS,
    Asset,
    Contract,
    Gate,
    Output,
    Platform,
    check_signatures,
    contract_document,
    read_contract,
)
from .decision import ContractState, check_contract, check_job, check_statements, check_work
from .documents import (
    JOB_TYPE,
    PERMIT_TYPE,
    REVOCATION_TYPE,
    STATUS_TYPE,
    Job,
    Permit,
    check_statement,
    in_force_statement,
    job_envelope,
    permit_envelope,
    read_job,
    read_permit,
    read_revocation,
    revocation_envelope,
)
from .outputs import OutputManifest, check_output
from .party import (
    CARD_TYPE,
    COMPROMISE_TYPE,
    Card,
    PartyKeys,
    check_compromise,
    compromise_statement,
    log_origin,
    make_card,
    read_card,
    replace_card,
)
from .recipe import Recipe, parse_recipe
from .recipe.fields import decimal_text
from .rules import UNITS, PrivacyRule, RecipeRule, amount, covers, total
from .terms import FORMS, SENSITIVITIES, Terms
from .trustees import TRUSTEE_KEY_KIND, TrusteeEntry, check_trustee_terms, read_trustee_key, trustee_key

__all__ = [
    "CARD_TYPE",
    "COMPROMISE_TYPE",
    "CONTRACT_TYPE",
    "FORMS",
    "JOB_TYPE",
    "LEVELS",
    "PERMIT_TYPE",
    "REVOCATION_TYPE",
    "SENSITIVITIES",
    "STATUS_TYPE",
    "TRUSTEE_KEY_KIND",
    "UNITS",
    "Asset",
    "Card",
    "Contract",
    "ContractState",
    "Gate",
    "Job",
    "Output",
    "OutputManifest",
    "PartyKeys",
    "Permit",
    "Platform",
    "PrivacyRule",
    "Recipe",
    "RecipeRule",
    "Terms",
    "TrusteeEntry",
    "amount",
    "check_compromise",
    "check_contract",
    "check_job",
    "check_output",
    "check_signatures",
    "check_statement",
    "check_statements",
    "check_trustee_terms",
    "check_work",
    "compromise_statement",
    "contract_document",
    "covers",
    "decimal_text",
    "in_force_statement",
    "job_envelope",
    "log_origin",
    "make_card",
    "parse_recipe",
    "permit_envelope",
    "read_card",
    "read_contract",
    "read_job",
    "read_permit",
    "read_revocation",
    "read_trustee_key",
    "replace_card",
    "revocation_envelope",
    "total",
    "trustee_key",
]
