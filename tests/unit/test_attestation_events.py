"""What an agent may say about a launch beside the workload: GPUs and tenancy. Silence is the weaker word."""

from __future__ import annotations

import pytest

from cloister.attestation.events import Journal, open_log
from cloister.crypto import canonical_json, parse_canonical
from cloister.errors import Denied, Malformed, Untrusted

INSTANCE = b"i" * 16


def text(**launch: object) -> str:
    journal = Journal(bytes(32))
    journal.commit(journal.prepare(INSTANCE, bytes(32), bytes(32), bytes(32), **launch))  # type: ignore[arg-type]
    return journal.additional(INSTANCE)


def changed(additional: str, **launch: object) -> str:
    body = parse_canonical(additional.encode())
    body["cloister"]["launch"].update(launch)
    return canonical_json(body).decode()


def test_said_and_unsaid() -> None:
    plain = open_log(text())
    assert (plain.gpus, plain.tenancy) == (0, "shared")
    assert "gpus" not in plain.launch
    said = open_log(text(gpus=8, exclusive=True))
    assert (said.gpus, said.tenancy) == (8, "exclusive")


@pytest.mark.parametrize(
    "more",
    [{"gpus": 1}, {"gpus": "01"}, {"gpus": "0"}, {"gpus": "17"}, {"gpus": ["1"]}, {"tenancy": "shared"}, {"x": "1"}],
)
def test_only_what_an_agent_would_write(more: dict[str, object]) -> None:
    with pytest.raises(Malformed) as caught:
        open_log(changed(text(), **more))
    assert caught.value.code == "evidence.events"


def test_a_launch_that_claims_more_than_was_measured() -> None:
    with pytest.raises(Untrusted) as caught:
        open_log(changed(text(), tenancy="exclusive"))
    assert caught.value.code == "evidence.launch"


def test_other_devices_are_handed_on_unread() -> None:
    body = parse_canonical(text().encode())
    body["nvidia"] = [{"a": "b"}]
    assert open_log(canonical_json(body).decode()).devices == {"nvidia": [{"a": "b"}]}
    body |= {str(n): {} for n in range(4)}
    with pytest.raises(Malformed):
        open_log(canonical_json(body).decode())
    del body["cloister"]
    with pytest.raises(Malformed):
        open_log(canonical_json(body).decode())


def test_nothing_runs_beside_a_sandbox_that_must_be_alone() -> None:
    rest = (bytes(32), bytes(32), bytes(32))
    journal = Journal(bytes(32))
    journal.commit(journal.prepare(INSTANCE, *rest))
    with pytest.raises(Denied) as caught:
        journal.prepare(b"j" * 16, *rest, exclusive=True)
    assert caught.value.code == "attester.exclusive"
    journal.retire(INSTANCE)
    journal.commit(journal.prepare(b"j" * 16, *rest, exclusive=True))
    with pytest.raises(Denied) as caught:
        journal.prepare(b"k" * 16, *rest)
    assert caught.value.code == "attester.exclusive"
    journal.retire(b"j" * 16)
    journal.commit(journal.prepare(b"k" * 16, *rest))
    # What must not run must not be measured either: the log has three launches and the agent.
    assert len(open_log(journal.additional(b"k" * 16)).digests) == 4
