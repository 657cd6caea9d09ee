"""One owner has a stock Trustee, and the only broker is another party's, who changed its program.

That broker lets everything pass. So what the contract lets a job do must be decided by who else knows it: the measured
workload, before it asks the Trustee for the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Denied
from cloister.workload.acquire import acquire_keys
from cloister.workload.key_session import AttestedSession, gather_statements
from tests.broker_world import TERMS, World, nothing_granted
from tests.trustee_double import Trustee
from tests.trustee_world import launched, trustee_contract

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture
def trustee(tmp_path: Path) -> Iterator[Trustee]:
    server = Trustee(tmp_path, selects="sha256")
    yield server
    server.close()


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hospital's broker signs and serves jobs that the contract doesn't permit."""
    for module in ("agreements", "decision"):
        monkeypatch.setattr(f"cloister.broker.{module}.check_job", lambda *_: None)


@pytest.mark.usefixtures("rigged")
@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"method": "full"}, "recipe.method"),  # the base's weights would leave, under the name of an adapter
        ({"epochs": 6}, "recipe.epochs"),
        ({"checkpoint_steps": 10}, "recipe.checkpoints"),
    ],
)
def test_a_job_beyond_the_contract(world: World, trustee: Trustee, asked: dict[str, Any], code: str) -> None:
    with launched(world, trustee_contract(world, trustee), trustee, **asked) as run:
        run.store()
        with pytest.raises(Denied) as caught:
            acquire_keys(run.context(), purpose="release")
        assert caught.value.code == code
    assert trustee.requests == []


@pytest.mark.usefixtures("rigged")
def test_a_base_is_used_as_data(world: World, trustee: Trustee) -> None:
    contract = trustee_contract(world, trustee)
    swapped = {"data": "lab/minilm", "base": "hospital/queries"}
    with launched(world, contract, trustee, **swapped) as run:
        run.store()
        with pytest.raises(Denied) as caught:
            acquire_keys(run.context(), purpose="release")
        assert caught.value.code == "job.use"
    assert trustee.requests == []


def test_a_key_after_its_owners_end(world: World, trustee: Trustee) -> None:
    """Lab's Trustee knows no date. The other owners' brokers have it from the contract that they signed, too."""
    terms = replace(TERMS, keep_until=world.clock() + 10)
    world.base = world.lab.seal(world.folder / "dated", "lab/minilm", "model", terms=terms)
    data, base = world.contract_fields()["assets"]
    contract = trustee_contract(world, trustee, assets=[data, {**base, "terms": terms.document()}])
    with launched(world, contract, trustee) as run:
        run.store()
        world.clock.pass_seconds(9)
        context = run.context()
        assert acquire_keys(context, purpose="release").unbound
        world.clock.pass_seconds(1)
        del trustee.requests[:]
        with nothing_granted(world.hospital), pytest.raises(CloisterError) as caught:  # nor goes on what has begun
            AttestedSession(
                context, "hospital", purpose="renew", sequence=1, statements=gather_statements(context)
            ).__enter__()
        assert caught.value.code == "asset.retention"
        with nothing_granted(world.hospital), pytest.raises(CloisterError) as caught:
            acquire_keys(context, purpose="release")
        assert caught.value.code == "asset.retention"
    assert trustee.requests == []
