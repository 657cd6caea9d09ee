"""Everything that a person does with Cloister, one function each. The command line is a thin layer over this.

``Home`` says where; every function takes it first. Long ones take ``progress``. They raise ``cloister.errors`` and
return frozen records with ``document()`` for programs.
"""

from .agreements import (
    contract_to_revoke,
    contract_to_sign,
    find_contract,
    list_contracts,
    revoke_contract,
    show_contract,
    sign_contract,
)
from .convert import convert_llama2c
from .drafting import new_contract
from .installation import platform_matches, this_node
from .jobs import cancel_job, check_recipe, find_job, follow, list_jobs, submit
from .keys import (
    cancel_reencryption,
    find_orphans,
    hold,
    key_usage,
    list_keys,
    needs_passphrase,
    rekey,
    retain,
    rotate_kek,
    schedule_rotation,
    shred,
    shred_checkpoints,
    split_secret_root,
    sweep_orphans,
    unhold,
    versions_to_shred,
    was_split,
)
from .logs import show_log, verify_log
from .parties import create_party, list_parties, parse_card, publish, trust, unlock, vault_choice
from .pulling import pull
from .recovery import restore_secret_root
from .reencrypt import reencrypt
from .sealing import seal, upload_again
from .startup import down, run_in_foreground, up
from .verify import verify_bundle

__all__ = [
    "cancel_job",
    "cancel_reencryption",
    "check_recipe",
    "contract_to_revoke",
    "contract_to_sign",
    "convert_llama2c",
    "create_party",
    "down",
    "find_contract",
    "find_job",
    "find_orphans",
    "follow",
    "hold",
    "key_usage",
    "list_contracts",
    "list_jobs",
    "list_keys",
    "list_parties",
    "needs_passphrase",
    "new_contract",
    "parse_card",
    "platform_matches",
    "publish",
    "pull",
    "reencrypt",
    "rekey",
    "restore_secret_root",
    "retain",
    "revoke_contract",
    "rotate_kek",
    "run_in_foreground",
    "schedule_rotation",
    "seal",
    "show_contract",
    "show_log",
    "shred",
    "shred_checkpoints",
    "sign_contract",
    "split_secret_root",
    "submit",
    "sweep_orphans",
    "this_node",
    "trust",
    "unhold",
    "unlock",
    "up",
    "upload_again",
    "vault_choice",
    "verify_bundle",
    "verify_log",
    "versions_to_shred",
    "was_split",
]
