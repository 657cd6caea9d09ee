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
from .approvals import (
    approve_release,
    list_measurements,
    releases_to_approve,
    revoke_measurement,
    trust_release_key,
)
from .attesters import admit_attester, enrol_attester, list_attesters, remove_attester
from .budgets import privacy_budget, set_privacy_budget
from .changes import image_manifest, image_measurement, show_changes
from .convert import convert_llama2c
from .drafting import new_contract
from .installation import platform_matches, this_node
from .job_plot import plot_job
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
from .logs import export_events, show_log, verify_log
from .parties import (
    broker_switches,
    create_party,
    list_parties,
    migrate,
    parse_card,
    publish,
    trust,
    unlock,
    vault_choice,
)
from .policies import check_policy, explain_policy, set_policy, show_policy
from .publishing import create_secret_key, key_fingerprint, make_release, read_secret_key, show_release, write_file
from .pulling import pull
from .recipe_sample import sample_tokens
from .recipes import (
    advise_recipe,
    describe_machine,
    examine_recipe,
    explain_recipe,
    forecast_lines,
    recipe_draft,
    recipe_schema,
)
from .recovery import restore_secret_root
from .reencrypt import reencrypt
from .reference_values import Guest, compute_reference_values, read_reference_values, sign_reference_values
from .sealing import seal, upload_again
from .startup import down, run_in_foreground, up
from .trustees import trustee_keys
from .verify import verify_bundle

__all__ = [
    "Guest",
    "admit_attester",
    "advise_recipe",
    "approve_release",
    "broker_switches",
    "cancel_job",
    "cancel_reencryption",
    "check_policy",
    "check_recipe",
    "compute_reference_values",
    "contract_to_revoke",
    "contract_to_sign",
    "convert_llama2c",
    "create_party",
    "create_secret_key",
    "describe_machine",
    "down",
    "enrol_attester",
    "examine_recipe",
    "explain_policy",
    "explain_recipe",
    "export_events",
    "find_contract",
    "find_job",
    "find_orphans",
    "follow",
    "forecast_lines",
    "hold",
    "image_manifest",
    "image_measurement",
    "key_fingerprint",
    "key_usage",
    "list_attesters",
    "list_contracts",
    "list_jobs",
    "list_keys",
    "list_measurements",
    "list_parties",
    "make_release",
    "migrate",
    "needs_passphrase",
    "new_contract",
    "parse_card",
    "platform_matches",
    "plot_job",
    "privacy_budget",
    "publish",
    "pull",
    "read_reference_values",
    "read_secret_key",
    "recipe_draft",
    "recipe_schema",
    "reencrypt",
    "rekey",
    "releases_to_approve",
    "remove_attester",
    "restore_secret_root",
    "retain",
    "revoke_contract",
    "revoke_measurement",
    "rotate_kek",
    "run_in_foreground",
    "sample_tokens",
    "schedule_rotation",
    "seal",
    "set_policy",
    "set_privacy_budget",
    "show_changes",
    "show_contract",
    "show_log",
    "show_policy",
    "show_release",
    "shred",
    "shred_checkpoints",
    "sign_contract",
    "sign_reference_values",
    "split_secret_root",
    "submit",
    "sweep_orphans",
    "this_node",
    "trust",
    "trust_release_key",
    "trustee_keys",
    "unhold",
    "unlock",
    "up",
    "upload_again",
    "vault_choice",
    "verify_bundle",
    "verify_log",
    "versions_to_shred",
    "was_split",
    "write_file",
]
