"""What a run says when it ends badly after plaintext was opened: a code, and the one fixed sentence for it.

A sentence that is put together at the place of the error may quote a header, a key or a label, and a file's first
line may be data. So from the moment when the assets are open, nothing but these sentences leaves.
"""

from __future__ import annotations

from ..errors import CloisterError

__all__ = ["SENTENCES", "spoken"]

_UNSPOKEN = "The run failed inside the trusted code; its text stays there because it may quote data."

SENTENCES: dict[str, str] = {
    "checkpoint.files": "The recorded checkpoint lacks a part; start the job anew.",
    "checkpoint.generators": "The recorded checkpoint is of another number of processes; start the job anew.",
    "checkpoint.missing": "The recorded checkpoint is not in the node's output folder; start the job anew.",
    "checkpoint.state": "The recorded checkpoint does not fit this run; start the job anew.",
    "checkpoint.type": "The recorded checkpoint holds something that is no training state; start the job anew.",
    "checkpoint.weights": "The recorded checkpoint does not fit this model; start the job anew.",
    "data.blank": "The column of texts or labels holds blank cells; fill or remove those rows and seal again.",
    "data.cell": "A cell of the dataset is longer than a cell may be; shorten it and seal again.",
    "data.column": "The dataset has no column of the name that the recipe gives; compare it with the sealed file.",
    "data.csv": "The dataset's CSV can't be read; check its quoting and seal again.",
    "data.empty": "The dataset has no rows; seal a file with data.",
    "data.encoding": "The dataset is not valid UTF-8; convert it and seal again.",
    "data.few": "The dataset has too few rows to train and to validate on; seal more rows.",
    "data.format": "The dataset holds no .csv, .jsonl or .parquet file; seal one of these.",
    "data.header": "The dataset's header is missing or names two columns alike; mend it and seal again.",
    "data.json": "A line of the dataset is not a JSON object of texts; mend it and seal again.",
    "data.labels": "The column of labels holds too few or too many different labels; check the recipe's columns.",
    "data.line": "A line of the dataset is longer than a line may be; split it and seal again.",
    "data.list": "A cell of a column of lists holds no list of texts; convert it and seal again.",
    "data.messages": "A conversation is no list of {role, content} that can be trained on; check it locally.",
    "data.number": "A cell of the column of relevances is no number from 0 up; mend it and seal again.",
    "data.pairs": "A row has the same answer as chosen and rejected; drop such rows and seal again.",
    "data.parquet": "The dataset's Parquet file can't be read; write it again and seal it.",
    "data.ragged": "A row of the dataset has more or fewer cells than its header; mend it and seal again.",
    "data.relevance": "Each query needs a relevant document, and some documents must not be relevant; mend them.",
    "data.size": "The dataset is larger than a table may be; split it.",
    "data.tags": "Tokens and tags do not fit together, or the tags are of no known form; write IOB2 or plain tags.",
    "data.test": "The recipe chooses by validation rows and no other rows are left to report on; report this.",
    "data.text": "A cell of a column that the recipe names is not text; convert it and seal again.",
    "data.user": "The column of users holds empty cells; fill them in and seal again.",
    "distributed.ended": "One of the training's processes ended, most often for want of memory; lower batch_size.",
    "distributed.inputs": "A process of the training was given inputs that are not sealed; report this.",
    "distributed.processes": "The recipe wants more processes than the node has processors; lower processes.",
    "distributed.start": "A process of the training could not be started; lower processes.",
    "evaluation.figure": "The evaluation gave a figure that is not a number; lower the learning rate.",
    "gate.failed": "A gate of the contract did not pass, so nothing is released.",
    "gate.metric": "The contract gates on a metric that this task does not measure.",
    "general.few": "The asset of general text holds too few different rows; seal more of it.",
    "general.flat": "The base model's answers to general text depend on none of its weights; check the base.",
    "lease.expired": "A key lease ended before it was renewed.",
    "model.architecture": "The base model's architecture is not one that can be trained here.",
    "model.code": "The base model's folder holds or asks for code; seal it without.",
    "model.config": "The base model's config.json is not one that can be trained here.",
    "model.consumed": "The base model was taken twice; report this.",
    "model.files": "The base model's folder holds too many files, or lacks one; seal a complete Hugging Face folder.",
    "model.index": "The base model's index of weight files does not fit its files; seal a complete folder.",
    "model.json": "A JSON file of the base model can't be read; seal a complete Hugging Face folder.",
    "model.missing": "The base model's folder lacks a file; seal a complete Hugging Face folder in safetensors.",
    "model.nan": "The base model's weights hold values that are not numbers; seal a sound model.",
    "model.pickle": "The base model's folder holds pickled weights; convert them to safetensors and seal again.",
    "model.pooling": "The base model's pooling settings can't be read; seal a complete folder.",
    "model.quantize": "The base model's layers have widths that 4 bits can't hold; use method lora.",
    "model.safetensors": "The base model's safetensors file is damaged; seal a sound one.",
    "model.size": "The base model is larger than this node can load.",
    "model.task": "The base model can't do this task: an encoder writes nothing, an encoder-decoder only answers.",
    "model.tokenizer": "The base model's tokenizer can't be read; seal a folder with its tokenizer.json.",
    "model.vocabulary": "The base model's tokenizer and weights do not fit together; seal a matching pair.",
    "model.weights": "The base model's weights do not fit its config.json; seal a matching pair.",
    "privacy.delta": "The recipe's delta is too large for so few rows or users; lower privacy.delta.",
    "privacy.few": "A step would take every row, and privacy needs a random part; lower batch_size or give more rows.",
    "privacy.unreachable": "No noise keeps the run within its epsilon; raise privacy.epsilon, or lower epochs.",
    "recipe.combination": "The base model can't do what the recipe asks: an encoder-decoder has no privacy or ewc.",
    "recipe.compile": "The model can't be compiled on this node; set compile to auto.",
    "recipe.packing": "The base model does not keep rows apart that stand beside each other; set packing to auto.",
    "recipe.targets": "The recipe names LoRA targets that the base model does not have.",
    "recipe.tokens": "The base model has too few positions for the recipe's virtual tokens; use fewer.",
    "resume.differs": "The checkpoint is of another recipe or dataset; start the job anew.",
    "script.confinement": "The node's machine can't confine a party's program; run the job on another one.",
    "script.failed": "The training program ended with an error; run it on data that you may see to find it.",
    "script.message": "The training program sent what can't be read; it must use nothing but its run.",
    "script.missing": "The training program's folder has no main.py; seal one that defines train(run).",
    "storage.full": "The node's disk is full; free space on it and submit again.",
    "template.failed": "The base model's chat template fails on a conversation; use template chatml.",
    "template.limit": "The base model's chat template works too long or writes too much; use template chatml.",
    "template.missing": "The base model has no chat template; use template chatml, or leave it to auto.",
    "template.prefix": "The chat template hides where answers begin; give single answers, or use template chatml.",
    "template.refused": "The chat template refuses a conversation; check the order of roles, or use template chatml.",
    "template.stop": "The chat template ends answers with no token at which generation can stop; use template chatml.",
    "template.syntax": "The base model's chat template can't be compiled; use template chatml.",
    "training.gradient": "The gradients exploded; lower the learning rate, or set max_gradient_norm.",
    "training.look": "A figure of the validation rows stopped being a number; lower the learning rate.",
    "training.loss": "The training loss stopped being a number; lower the learning rate.",
    "training.memory": "There is too little memory, also for small pieces of a batch; lower batch_size or max_length.",
    "training.weights": "Some weights stopped being numbers; lower the learning rate.",
}

# Errors of whole families, found before or beside any plaintext.
_FAMILIES = {
    ("aead", "dsse", "manifest", "sealed", "signature", "stream"): (
        "A sealed asset is not what its manifest and contract name: it was changed, cut or exchanged; store it again."
    ),
    ("broker", "node", "tls", "wire"): "A broker could not be reached or answered what can't be read; look at its log.",
    ("lease", "status", "contract", "party", "permit", "output"): "A broker ended the run; its owner's log says why.",
}


def spoken(error: BaseException) -> dict[str, object]:
    """The wire form of an error of which nothing but the code is kept."""
    if not isinstance(error, CloisterError):
        return {"code": "workload.internal", "details": {}, "kind": "internal", "message": _UNSPOKEN}
    return {
        "code": error.code,
        "details": {},
        "kind": error.kind,
        "message": SENTENCES.get(error.code) or _of_family(error.code),
    }


def _of_family(code: str) -> str:
    first = code.partition(".")[0]
    return next((sentence for names, sentence in _FAMILIES.items() if first in names), _UNSPOKEN)
