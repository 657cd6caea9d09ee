"""More of the rules over PostgreSQL; see ``test_broker_postgres``."""

from __future__ import annotations

import pytest

from tests.adversarial.test_release_again import (
    test_an_instance_that_attested_before_the_permit_asks_after_it,
)
from tests.adversarial.test_release_beyond_contract import (
    test_an_asset_after_the_time_for_which_it_may_be_kept,
    test_an_old_version_of_an_asset,
)
from tests.adversarial.test_release_output import (
    test_a_second_output_of_one_instance,
    test_an_old_instance_releases_after_a_new_one_began,
)
from tests.adversarial.test_release_without_evidence import (
    test_the_operator_cannot_fill_the_disk_with_refusals,
)
from tests.adversarial.test_revocation_ignored import (
    test_a_running_job_goes_on_after_a_revocation,
    test_one_party_declares_another_lost,
)
from tests.adversarial.test_revocation_leases import (
    test_a_second_key_does_not_lengthen_the_lease,
    test_the_old_instance_renews_after_a_new_one_began,
)
from tests.adversarial.test_rollback_broker import (
    test_a_peer_that_confirms_lifts_the_warning,
    test_heads_of_strangers_are_not_kept,
    test_the_log_of_a_peer_is_rolled_back_before_our_eyes,
)
from tests.adversarial.test_rollback_checkpoint import (
    test_a_resumed_run_is_told_the_newest_checkpoint,
)
from tests.replicas import SharedWorld
from tests.unit.test_broker_retention import (
    test_a_hold_stops_expiry_until_it_is_lifted,
    test_a_task_keeps_its_key_over_restarts_and_rotations,
    test_many_versions_in_one_entry,
    test_shredded_checkpoints,
)
from tests.unit.test_broker_rotation import (
    test_a_rotation_in_pieces_is_gone_on_with,
    test_keys_are_read_all_the_while,
    test_what_is_sealed_meanwhile_is_under_the_new_one,
)

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]
pytestmark = pytest.mark.slow

__all__ = [
    "test_a_hold_stops_expiry_until_it_is_lifted",
    "test_a_peer_that_confirms_lifts_the_warning",
    "test_a_resumed_run_is_told_the_newest_checkpoint",
    "test_a_rotation_in_pieces_is_gone_on_with",
    "test_a_running_job_goes_on_after_a_revocation",
    "test_a_second_key_does_not_lengthen_the_lease",
    "test_a_second_output_of_one_instance",
    "test_a_task_keeps_its_key_over_restarts_and_rotations",
    "test_an_asset_after_the_time_for_which_it_may_be_kept",
    "test_an_instance_that_attested_before_the_permit_asks_after_it",
    "test_an_old_instance_releases_after_a_new_one_began",
    "test_an_old_version_of_an_asset",
    "test_heads_of_strangers_are_not_kept",
    "test_keys_are_read_all_the_while",
    "test_many_versions_in_one_entry",
    "test_one_party_declares_another_lost",
    "test_shredded_checkpoints",
    "test_the_log_of_a_peer_is_rolled_back_before_our_eyes",
    "test_the_old_instance_renews_after_a_new_one_began",
    "test_the_operator_cannot_fill_the_disk_with_refusals",
    "test_what_is_sealed_meanwhile_is_under_the_new_one",
]


@pytest.fixture
def world(shared_world: SharedWorld) -> SharedWorld:
    return shared_world
