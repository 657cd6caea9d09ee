"""What is released opens without Cloister: the model card's own lines, run where importing cloister fails."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.workload.data import column_forms, read_table
from cloister.workload.training import export_files, load_base, run_training, usage_snippet
from cloister.workload.training.batching import Row, collate_labelled, collate_pairs
from cloister.workload.training.encoders import encode_pairs, takes_types
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bart, tiny_bert, tiny_llama, tiny_t5
from tests.unit.test_workload_training_tasks import COLUMNS, made_rows

RECIPE = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 1, "learning_rate": "0.01",
    "checkpoint_steps": 0,
}  # fmt: skip
FULL = {**RECIPE, "method": "full"}
GENERATE = {**RECIPE, "task": "generation", "columns": {"completion": "text"}}
ANSWER = {**GENERATE, "columns": {"prompt": "text", "completion": "label"}, "max_steps": 2}
PAIR = {"prompt": "text", "chosen": "label", "rejected": "talk"}

RUNNER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cloister":
            raise ImportError("cloister is not here")
sys.meta_path.insert(0, Refuse())
try:
    import cloister
except ImportError:
    pass
else:
    raise SystemExit("cloister was imported")
import numpy, os
for folder in sys.argv[1:]:
    os.chdir(folder)
    names = {}
    exec(open("snippet.py").read(), names)
    numpy.save("logits.npy", names["logits"].numpy())
"""

TASKS = {task: {**RECIPE, "columns": {c: c for c in names}} for task, names in COLUMNS.items()}
CASES = {
    "lora": (RECIPE, tiny_bert),
    "full-first-token": ({**FULL, "pooling": "first"}, tiny_bert),
    "lora-lm": (GENERATE, tiny_llama),
    "full-lm": ({**GENERATE, "method": "full"}, lambda: tiny_llama(tied=False)),
    "full-lm-tied": ({**GENERATE, "method": "full"}, tiny_llama),
    "lora-decoder-classifies": (RECIPE, tiny_llama),
    "dora": ({**RECIPE, "lora": {"dora": True}}, tiny_bert),
    "ia3": ({**RECIPE, "method": "ia3"}, tiny_bert),
    "prefix": ({**RECIPE, "method": "prefix", "prefix": {"tokens": 4}}, tiny_bert),
    "prompt": ({**RECIPE, "method": "prompt", "prompt": {"tokens": 4}, "pooling": "first"}, tiny_bert),
    "ptuning": ({**RECIPE, "method": "ptuning", "ptuning": {"tokens": 4, "hidden": 8}}, tiny_bert),
    "ia3-lm": ({**GENERATE, "method": "ia3"}, tiny_llama),
    "prefix-lm": ({**GENERATE, "method": "prefix", "prefix": {"tokens": 4}}, tiny_llama),
    "prompt-lm": ({**GENERATE, "method": "prompt", "prompt": {"tokens": 4}}, tiny_llama),
    "ptuning-lm": ({**GENERATE, "method": "ptuning", "ptuning": {"tokens": 4, "hidden": 8}}, tiny_llama),
    "scratch-lm": ({**GENERATE, "method": "scratch"}, tiny_llama),
    "chat-lm": ({**GENERATE, "task": "chat", "columns": {"messages": "talk"}}, tiny_llama),
    "full-chat-lm": ({**GENERATE, "task": "chat", "columns": {"messages": "talk"}, "method": "full"}, tiny_llama),
    "preference-lm": ({**GENERATE, "task": "preference", "columns": PAIR, "dpo": {"beta": 1}}, tiny_llama),
    **{task: ({**more, "task": task}, tiny_bert) for task, more in TASKS.items()},
    "extraction-decoder": ({**TASKS["extraction"], "task": "extraction"}, tiny_llama),
    "embedding-full": ({**TASKS["embedding"], "task": "embedding", "method": "full"}, tiny_bert),
    "ranking-prompt": ({**TASKS["ranking"], "task": "ranking", "method": "prompt"}, tiny_bert),
    "answer-full": ({**ANSWER, "method": "full"}, tiny_t5),
    "answer-lora": (ANSWER, tiny_bart),
    "text-lm": ({**GENERATE, "task": "text", "columns": {"text": "text"}}, tiny_llama),
}


def _talk(text):
    return json.dumps([{"role": "user", "content": text}, {"role": "assistant", "content": "please help"}])


def run(recipe, base):
    parsed = parse_recipe(recipe)
    recorder = Recorder()
    if parsed.task in COLUMNS:
        lines = "\n".join(map(json.dumps, made_rows(parsed.task))).encode()
        table = read_table(
            {"q.jsonl": io.BytesIO(lines)}, parsed.columns.names(), forms=column_forms(parsed.columns)
        )  # fmt: skip
    else:
        table = read_table({"q.csv": io.BytesIO(banking_csv())}, ("text", "label"))
        table.columns["talk"] = [_talk(text) for text in table.column("text")]
    return run_training(
        parsed, load_base(readers(base)), table, sink=MemorySink(), progress=recorder, lease=recorder
    )  # fmt: skip


def ours(result):
    task, tokenizer = result.recipe.task, result.base.tokenizer
    with torch.no_grad():
        if task == "extraction":
            ids = torch.tensor([tokenizer.encode("words of a text to tag").ids])
            return result.model(ids, torch.ones_like(ids))["logits"].numpy()
        if task == "ranking":
            rows = encode_pairs(result.base, ["a query"] * 2, ["first document", "a second one"], 40)
            types = takes_types(result.recipe, result.base)
            batch = collate_pairs([Row(ids, 0, kinds if types else ()) for ids, kinds in rows], 0)
            del batch["labels"]
            return result.model(**batch)["logits"].numpy()
        if task == "embedding":
            rows = [Row(tuple(tokenizer.encode(t).ids), 0) for t in ("first text to compare", "a second one")]
            batch = collate_labelled(rows, 0)
            vectors = result.model.embed(batch["input_ids"], batch["attention_mask"])
            return (vectors @ vectors.T).numpy()
        if result.base.is_encoder_decoder:
            ids = torch.tensor([tokenizer.encode("what is to be answered").ids])
            start = torch.tensor([[result.model.config.decoder_start_token_id]])
            return result.model(ids, torch.ones_like(ids), decoder_input_ids=start).logits.numpy()
        if result.labels is None:
            ids = result.base.tokenizer.encode("the beginning of a text").ids
            if result.recipe.task == "chat":
                asked = "<|im_start|>user\na question</s>\n<|im_start|>assistant\n"
                ids = result.base.tokenizer.encode(asked, add_special_tokens=False).ids
            return result.model(torch.tensor([ids])).logits.numpy()
        rows = [result.base.tokenizer.encode(text).ids for text in ("first text to classify", "a second one")]
        width = max(map(len, rows))
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        return result.model(torch.tensor([r + [0] * (width - len(r)) for r in rows]), mask)["logits"].numpy()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Every case released into its own folder, and each one's snippet run there by one process without Cloister."""
    root, results = tmp_path_factory.mktemp("released"), {}
    for case, (recipe, base) in CASES.items():
        results[case] = run(recipe, base())
        for folder, files in (("", export_files(results[case])), ("base/", base())):
            for name, data in files.items():
                target = root / case / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        (root / case / "snippet.py").write_text(usage_snippet(results[case]))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *(str(root / case) for case in CASES)],
        capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root, results


@pytest.mark.parametrize("case", CASES)
def test_usage_snippet_gives_our_logits(released, case):
    root, results = released
    assert len([line for line in usage_snippet(results[case]).splitlines() if line.strip()]) <= 15
    assert np.allclose(np.load(root / case / "logits.npy"), ours(results[case]), atol=1e-5)


def test_release_names_the_asset_and_no_machine():
    files = export_files(run(RECIPE, tiny_bert()))
    assert set(files) == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/head.safetensors",
        "adapter/labels.json", "adapter/pooling.json",
    }  # fmt: skip
    config = json.loads(files["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == "lab/tiny"
    assert config["task_type"] == "FEATURE_EXTRACTION"
    assert config["inference_mode"] is True
    assert json.loads(files["adapter/labels.json"]) == ["card", "cash", "fee", "top_up"]
    assert json.loads(files["adapter/pooling.json"]) == {"max_length": 40, "mode": "mean", "normalize": True}
    assert not any(b"/tmp" in data or b"/home" in data for data in files.values())


def test_full_release_carries_the_tokenizer_as_it_was():
    files = export_files(run(FULL, tiny_bert()))
    assert files["model/tokenizer.json"] == tiny_bert()["tokenizer.json"]
    assert json.loads(files["model/config.json"])["dtype"] == "float32"
    assert "model/head.safetensors" in files
