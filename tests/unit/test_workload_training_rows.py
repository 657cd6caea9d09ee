"""Tokens, batches and their order."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Misuse
from cloister.workload.training import load_base
from cloister.workload.training.batching import (
    IGNORED,
    Row,
    collate_causal,
    collate_labelled,
    epoch_order,
    row_digest,
)
from cloister.workload.training.heads import Pooling, pool
from cloister.workload.training.state import pack, unpack
from cloister.workload.training.tokenize import encode_completions, encode_labelled
from tests.tiny_models import readers, tiny_bert, tiny_llama


@given(st.lists(st.integers(1, 50), min_size=1, max_size=400), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_is_every_row_once(lengths, batch, seed, epoch):
    order = epoch_order(lengths, batch, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == epoch_order(lengths, batch, seed, epoch)


def test_epochs_and_seeds_differ_and_batches_hold_like_lengths():
    lengths = [random.Random(1).randint(1, 100) for _ in range(50)] * 8
    assert epoch_order(lengths, 8, 0, 0) != epoch_order(lengths, 8, 0, 1)
    assert epoch_order(lengths, 8, 0, 0) != epoch_order(lengths, 8, 1, 0)
    order = epoch_order(lengths, 8, 0, 0)
    padded = sum(8 * max(lengths[r] for r in order[i : i + 8]) for i in range(0, 400, 8))
    assert padded < 1.15 * sum(lengths)


def test_collators_pad_right_and_mask():
    batch = collate_labelled([Row((5, 6, 7), 1), Row((8,), 0)], pad=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    causal = collate_causal([Row((5, 6, 7), 1), Row((8,), 0)], pad=9)
    assert causal["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_digest_tells_rows_apart():
    rows = [Row((1, 2), 0), Row((3,), 1)]
    others = [[Row((1,), 0), Row((2, 3), 1)], rows[::-1], [Row((1, 2), 1), Row((3,), 1)], rows[:1]]
    assert len({row_digest(r) for r in [rows, *others]}) == 5


def test_completions_follow_their_prompts():
    base = load_base(readers(tiny_llama()))
    number = {word: base.tokenizer.token_to_id(word) for word in ("my", "card", "is", "lost")}
    (row,) = encode_completions(base.tokenizer, base.tokens, ["my card"], [" is lost"], 10)
    assert row == Row((0, number["my"], number["card"], number["is"], number["lost"], 1), 3)
    (bare,) = encode_completions(base.tokenizer, base.tokens, None, ["is lost"], 10, ended=False)
    assert bare == Row((0, number["is"], number["lost"]), 1)


def test_where_the_border_merges_both_sides_are_tokenized_apart():
    base = load_base(readers(tiny_llama()))  # whole words only: "ca" + "rd" is one word in the joint text
    (row,) = encode_completions(base.tokenizer, base.tokens, ["my ca"], ["rd lost"], 10)
    unknown, number = base.tokenizer.token_to_id("[UNK]"), base.tokenizer.token_to_id
    assert row.ids == (0, number("my"), unknown, unknown, number("lost"), 1)
    assert row.target == 3


def test_a_long_prompt_loses_its_beginning_and_a_long_completion_its_end():
    base = load_base(readers(tiny_llama()))
    number = base.tokenizer.token_to_id
    (row,) = encode_completions(base.tokenizer, base.tokens, ["the my card is"], [" lost today"], 5)
    assert row == Row((0, number("is"), number("lost"), number("today"), 1), 2)
    (row,) = encode_completions(base.tokenizer, base.tokens, ["the"], [" my card is lost today"], 4)
    assert row == Row((0, number("my"), number("card"), number("is")), 1)


@pytest.mark.parametrize(("prompt", "completion"), [("my", ""), (None, "")])
def test_empty_completions_are_refused(prompt, completion):
    base = load_base(readers(tiny_llama()))
    with pytest.raises(Misuse) as caught:
        encode_completions(base.tokenizer, base.tokens, None if prompt is None else [prompt], [completion], 8)
    assert caught.value.code == "data.blank"


def test_labelled_rows_are_cut_and_the_tokenizer_left_as_it_was():
    base = load_base(readers(tiny_bert()))
    rows = encode_labelled(base.tokenizer, ["my card " * 40, "lost"], [3, 0], 8)
    assert [len(r.ids) for r in rows] == [8, 2]
    assert base.tokenizer.truncation is None


def test_pooling_passes_over_padding():
    hidden = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    mask = torch.tensor([[1, 0]])
    assert pool(hidden, mask, Pooling("mean", True)).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert pool(hidden, mask, Pooling("first", False)).tolist() == [[3.0, 4.0]]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(plain)
def test_state_comes_back_exactly(value):
    def same(a, b):
        if isinstance(a, float):
            return a.hex() == b.hex()
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return a == b and type(a) is type(b)

    assert same(value, unpack(pack(value)))


def test_numbers_of_other_libraries_are_not_guessed():
    from cloister.errors import Malformed

    with pytest.raises(Malformed):
        pack(np.float32(1.0))
