"""The rules of release, lease, budget, revocation, refusal, rotation and restart, over PostgreSQL.

The same tests as over SQLite, run again with a hospital whose state and log are in a database.
"""

from __future__ import annotations

import pytest

from tests.adversarial.test_release_again import (
    test_one_output_a_unit_of_the_budget,
)
from tests.adversarial.test_release_beyond_contract import (
    test_a_restarted_run_costs_no_second_unit,
    test_one_run_more_than_the_budget,
    test_two_requests_race_for_the_last_unit,
)
from tests.adversarial.test_release_output import (
    test_an_honest_output_is_permitted_once,
)
from tests.adversarial.test_release_unlogged import (
    test_a_retry_gets_the_identical_answer,
    test_the_key_goes_out_only_after_the_log_has_it,
)
from tests.adversarial.test_release_without_evidence import (
    test_an_instance_id_is_taken_over_with_other_keys,
)
from tests.adversarial.test_revocation_ignored import (
    test_a_revocation_survives_a_restart,
    test_a_revoked_contract_gives_no_key,
)
from tests.adversarial.test_revocation_leases import (
    test_an_honest_run_renews,
    test_two_renewals_attest_for_one_sequence,
)
from tests.adversarial.test_rollback_checkpoint import (
    test_a_checkpoint_goes_back,
)
from tests.replicas import SharedWorld
from tests.unit.test_broker_rotation import (
    test_a_rotation_wraps_all_anew_in_batches_and_destroys_the_old,
    test_two_rotations_at_once,
)

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

__all__ = [
    "test_a_checkpoint_goes_back",
    "test_a_restarted_run_costs_no_second_unit",
    "test_a_retry_gets_the_identical_answer",
    "test_a_revocation_survives_a_restart",
    "test_a_revoked_contract_gives_no_key",
    "test_a_rotation_wraps_all_anew_in_batches_and_destroys_the_old",
    "test_an_honest_output_is_permitted_once",
    "test_an_honest_run_renews",
    "test_an_instance_id_is_taken_over_with_other_keys",
    "test_one_output_a_unit_of_the_budget",
    "test_one_run_more_than_the_budget",
    "test_the_key_goes_out_only_after_the_log_has_it",
    "test_two_renewals_attest_for_one_sequence",
    "test_two_requests_race_for_the_last_unit",
    "test_two_rotations_at_once",
]


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    return shared_world
