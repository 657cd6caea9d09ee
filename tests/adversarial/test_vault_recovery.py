"""Whoever has too few shares, others' shares, or an edited file: nothing opens, and the file stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import canonical_json
from cloister.crypto.slip39 import Share, share_secret
from cloister.errors import CloisterError, Malformed, Misuse, Untrusted
from cloister.keys import Vault, create_vault, open_vault, restore_root, split_root
from tests.sealing import CHEAP

PASSPHRASE = b"correct horse battery"
NEW = b"another passphrase"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = create_vault(tmp_path / "vault.json", PASSPHRASE, "hospital", params=CHEAP)
    vault.put_secret("tls", b"t" * 32)
    return vault


def refused(path: Path, shares: list[str], kind: type[CloisterError]) -> str:
    before = path.read_bytes()
    with pytest.raises(kind) as info:
        restore_root(path, shares, NEW)
    assert type(info.value) is kind
    assert path.read_bytes() == before
    open_vault(path, PASSPHRASE).close() if info.value.code != "vault.changed" else None
    return info.value.code


def test_too_few_shares(vault: Vault) -> None:
    shares = split_root(vault, 3, 5)
    for count in (0, 1, 2):
        assert refused(vault.path, shares[:count], Misuse) == "shares.few"


def test_one_share_given_twice(vault: Vault) -> None:
    shares = split_root(vault, 3, 5)
    assert refused(vault.path, [shares[0], shares[1], shares[0]], Misuse) == "shares.twice"


def test_a_wrong_word(vault: Vault) -> None:
    shares = split_root(vault, 2, 3)
    words = shares[0].split()
    words[7] = "academic" if words[7] != "academic" else "acid"
    assert refused(vault.path, [" ".join(words), shares[1]], Malformed) == "shares.checksum"
    words[7] = "password"
    assert refused(vault.path, [" ".join(words), shares[1]], Malformed) == "shares.word"
    assert refused(vault.path, [" ".join(words[:-1]), shares[1]], Malformed) in {"shares.word", "shares.length"}


def test_shares_of_an_older_split(vault: Vault) -> None:
    """A new split is there because somebody left, or lost a share."""
    old = split_root(vault, 2, 3)
    new = split_root(vault, 2, 3)
    assert refused(vault.path, old[:2], Untrusted) == "recovery.other"
    assert refused(vault.path, [old[0], new[1]], Misuse) == "shares.mixed"
    restore_root(vault.path, new[:2], NEW)


def test_another_vaults_shares(tmp_path: Path, vault: Vault) -> None:
    split_root(vault, 2, 3)
    with create_vault(tmp_path / "other.json", PASSPHRASE, "hospital", params=CHEAP) as other:
        shares = split_root(other, 2, 3)
    assert refused(vault.path, shares[:2], Untrusted) == "recovery.other"


def test_shares_made_up_for_this_set(vault: Vault) -> None:
    """The set's number stands in every share, so it is no secret: what counts is the box."""
    real = Share.from_words(split_root(vault, 2, 3)[0])
    _, texts = share_secret(b"x" * 32, 2, 3)
    made_up = [Share.from_words(text) for text in texts]
    forged = [Share(real.set_id, True, 0, s.place, 2, s.value).to_words() for s in made_up]
    assert refused(vault.path, forged[:2], Untrusted) == "recovery.other"


def test_a_share_exchanged_by_its_holder(vault: Vault) -> None:
    shares = split_root(vault, 2, 3)
    real = Share.from_words(shares[1])
    forged = Share(real.set_id, True, 0, real.place, 2, bytes(32)).to_words()
    assert refused(vault.path, [shares[0], forged], Untrusted) == "shares.forged"


def test_a_threshold_lowered_in_a_share(vault: Vault) -> None:
    shares = split_root(vault, 3, 5)
    lowered = []
    for text in shares[:2]:
        real = Share.from_words(text)
        lowered.append(Share(real.set_id, True, 0, real.place, 2, real.value).to_words())
    assert refused(vault.path, lowered, Untrusted) == "shares.forged"
    alone = Share.from_words(shares[0])
    single = Share(alone.set_id, True, 0, alone.place, 1, alone.value).to_words()
    assert refused(vault.path, [single], Untrusted) == "recovery.other"


def test_a_vault_that_was_never_split(tmp_path: Path, vault: Vault) -> None:
    with create_vault(tmp_path / "other.json", PASSPHRASE, "hospital", params=CHEAP) as other:
        shares = split_root(other, 2, 3)
    assert refused(vault.path, shares, Misuse) == "recovery.none"


def edited(path: Path, **fields: Any) -> None:
    body = json.loads(path.read_bytes())
    body["recovery"].update(fields)
    path.write_bytes(canonical_json(body))


def test_the_files_own_counts_edited(vault: Vault) -> None:
    """The box is bound to them, and the MAC covers them."""
    shares = split_root(vault, 2, 3)
    edited(vault.path, threshold=1)
    before = vault.path.read_bytes()
    for call in (lambda: restore_root(vault.path, shares, NEW), lambda: open_vault(vault.path, PASSPHRASE)):
        with pytest.raises(Untrusted) as info:
            call()
        assert info.value.code in {"recovery.other", "vault.changed"}
    assert vault.path.read_bytes() == before


def test_an_edited_file_is_not_restored(vault: Vault) -> None:
    """Shares open the master key; what else was done to the file, the MAC shows."""
    shares = split_root(vault, 2, 3)
    body = json.loads(vault.path.read_bytes())
    body["secrets"] = []
    vault.path.write_bytes(canonical_json(body))
    assert refused(vault.path, shares[:2], Untrusted) == "vault.changed"


def test_a_vault_in_use_is_told(vault: Vault) -> None:
    """The open one's next change is refused: it never overwrites what was restored."""
    shares = split_root(vault, 2, 2)
    restore_root(vault.path, shares, NEW)
    with pytest.raises(Misuse) as info:
        vault.rotate_kek()
    assert info.value.code == "vault.stale"
    open_vault(vault.path, NEW).close()
