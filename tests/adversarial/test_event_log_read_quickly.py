"""An event log in the agent's own bytes is read in one pass. It lets nothing past that the slow way refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import events
from cloister.attestation.events import Journal, OpenedLog, open_log
from cloister.attestation.models import MAX_EVENTS, Evidence
from cloister.crypto import canonical_json, parse_canonical, random_bytes
from cloister.errors import CloisterError, Malformed

INSTANCE = b"i" * 16
OTHER = b"o" * 16


def journal(launches: int = 3, **launch: Any) -> str:
    made = Journal(bytes(32))
    for number in range(launches):
        instance = INSTANCE if number == 0 else random_bytes(16)
        made.commit(made.prepare(instance, bytes(32), bytes(32), random_bytes(32), **(launch if number == 0 else {})))
    return made.additional(INSTANCE)


def slowly(additional: str, monkeypatch: pytest.MonkeyPatch) -> OpenedLog | str:
    with monkeypatch.context() as patch:
        patch.setattr(events, "_read_usual", lambda _: None)
        return outcome(additional)


def outcome(additional: str) -> OpenedLog | str:
    try:
        return open_log.__wrapped__(additional)
    except CloisterError as error:
        return error.code


@pytest.mark.parametrize("launches", [1, 2, 64, MAX_EVENTS - 1])
@pytest.mark.parametrize("more", [{}, {"gpus": 4, "exclusive": True}])
def test_both_ways_find_the_same(launches: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if more and launches > 1:
        launches = 1  # alone
    text = journal(launches, **more)
    assert events._read_usual(text) is not None
    found = outcome(text)
    assert isinstance(found, OpenedLog)
    assert len(found.digests) == launches + 1
    assert found == slowly(text, monkeypatch)


TEXT = journal(2)


@settings(max_examples=400)
@given(st.integers(0, len(TEXT) - 1), st.sampled_from('{}[]",:\\0aA \n\x00é\U0001f600'), st.sampled_from("xid"))
def test_any_change_of_one_character_is_judged_alike(at: int, new: str, how: str) -> None:
    text = TEXT[:at] + (new if how != "d" else "") + TEXT[at + (how != "i") :]
    quick = outcome(text)
    with pytest.MonkeyPatch.context() as patch:
        assert quick == slowly(text, patch)
    if text != TEXT and isinstance(quick, OpenedLog):
        assert events.replay(quick.digests) != events.replay(open_log(TEXT).digests)  # then PCR 15 is another


def body(**changes: Any) -> dict[str, Any]:
    made = parse_canonical(TEXT.encode())
    made["cloister"] |= changes
    return dict(made)


def attacks() -> list[str]:
    good = parse_canonical(TEXT.encode())["cloister"]
    listed = good["events"]
    made = [
        body(events=[]),
        body(events=listed[1:]),
        body(events=[*listed, listed[0]]),
        body(events=[*listed, listed[-1]]),
        body(events=[listed[0], *[listed[1]] * MAX_EVENTS]),
        body(launch={**good["launch"], "instance": OTHER.hex()}),
        body(launch={**good["launch"], "more": {}}),
        body(agent={**good["agent"], "measurement": "0" * 63 + "1"}),
        body(agent=good["launch"]),
        body(extra=1),
        # The list where it isn't asked for, and another one where it is.
        {"cloister": {**good, "events": listed[:1]}, "gpu": {"events": listed}},
        {"cloister": {**good, "agent": {"events": listed}}},
        {**body(), "gpu": {"cloister": good}},
    ]
    texts = [canonical_json(each).decode() for each in made]
    return [
        *texts,
        json.dumps(body()),  # with spaces
        TEXT.replace('"kind":"launch"', '"kind":"launch" ', 1),
        TEXT.replace('"agent":{', '"agent":{"kind":"agent",', 1),  # a name twice
        TEXT.replace('"salt":"', '"salt":"\\u0061', 1),
        TEXT + " ",
        TEXT + "\n",
        "\ufeff" + TEXT,
        TEXT[:-1],
    ]


@pytest.mark.parametrize("number", range(len(attacks())))
def test_nothing_gets_past_it(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = attacks()[number]
    quick = outcome(text)
    assert quick == slowly(text, monkeypatch)
    assert isinstance(quick, str) or quick.devices


def test_half_a_character_is_no_evidence() -> None:
    with pytest.raises(Malformed) as caught:
        Evidence("tpm", {}, "\ud800")
    assert caught.value.code == "json.text"
