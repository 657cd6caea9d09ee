"""A released embedding model opens in sentence-transformers as it stands, with the vectors that were measured."""

import io
import json

import numpy as np
import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.workload.data import read_table
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.batching import Row, collate_labelled
from tests.tiny_models import MemorySink, Recorder, readers, tiny_bert
from tests.unit.test_workload_training_tasks import made_rows

RECIPE = {
    "task": "embedding", "data": "bank/queries", "base": "lab/tiny", "threads": 1, "batch_size": 8, "epochs": 1,
    "columns": {"query": "query", "positive": "positive"}, "learning_rate": "0.01", "checkpoint_steps": 0,
}  # fmt: skip
TEXTS = ["card lost today", "my money arrived late at the bank"]


def released(**more):
    recipe = parse_recipe({**RECIPE, **more})
    lines = "\n".join(map(json.dumps, made_rows("embedding"))).encode()
    table, port = read_table({"q.jsonl": io.BytesIO(lines)}, recipe.columns.names()), Recorder()
    base = load_base(readers(tiny_bert()))
    return run_training(recipe, base, table, sink=MemorySink(), progress=port, lease=port)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_the_folder_of_weights_opens_as_a_sentence_encoder(pooling, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    result = released(method="full", pooling=pooling)
    for name, data in export_files(result).items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    theirs = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    assert theirs.max_seq_length == result.max_length
    batch = collate_labelled([Row(tuple(result.base.tokenizer.encode(text).ids), 0) for text in TEXTS], 0)
    with torch.no_grad():
        ours = result.model.embed(batch["input_ids"], batch["attention_mask"]).numpy()
    assert np.allclose(theirs.encode(TEXTS), ours, atol=1e-5)


def test_an_adapter_is_no_sentence_encoder_by_itself():
    assert not any(name.endswith("modules.json") for name in export_files(released(method="lora")))
