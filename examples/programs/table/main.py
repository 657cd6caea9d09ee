"""A small network on a table: the column ``target`` (0 or 1) of the dataset's CSV files from all others, numbers.

Parameters: ``hidden`` (units, 32). It is compared with logistic regression on the same rows.
"""

from __future__ import annotations

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn


def train(run):
    settings, seed = run.settings, int(run.settings["seed"])
    table = pd.concat([pd.read_csv(run.data.open(path)) for path in run.data.paths() if path.endswith(".csv")])
    table = table.sample(frac=1.0, random_state=seed)
    held = max(1, int(len(table) * settings["validation"]))
    target = torch.tensor(table.pop("target").to_numpy(), dtype=torch.float32)
    rows = torch.tensor(table.to_numpy(), dtype=torch.float32)
    mean, deviation = rows[held:].mean(0), rows[held:].std(0).clamp_min(1e-6)
    rows = (rows - mean) / deviation

    torch.manual_seed(seed)
    hidden = int(run.parameters.get("hidden", "32"))
    model = nn.Sequential(nn.Linear(rows.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    epochs, first = int(settings["epochs"]), 0
    if run.resumed:
        first = run.resumed.step
        model.load_state_dict({k[2:]: v for k, v in run.resumed.tensors.items() if k.startswith("w.")})
        for place, weight in enumerate(model.parameters()):
            optimizer.state[weight]["momentum_buffer"] = run.resumed.tensors[f"m.{place}"]
    batch = int(settings["batch_size"])
    for epoch in range(first, epochs):
        order = torch.randperm(len(rows) - held, generator=torch.Generator().manual_seed(seed + epoch)) + held
        for part in order.split(batch):
            loss = nn.functional.binary_cross_entropy_with_logits(model(rows[part])[:, 0], target[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run.report(epoch + 1, epochs, loss=loss.item())
        weights = {f"w.{name}": tensor for name, tensor in model.state_dict().items()}
        moments = [optimizer.state[weight]["momentum_buffer"] for weight in model.parameters()]
        run.checkpoint(epoch + 1, weights | {f"m.{place}": moment for place, moment in enumerate(moments)})

    with torch.no_grad():
        tuned = ((model(rows[:held])[:, 0] > 0) == (target[:held] > 0.5)).float().mean().item()
    plain = LogisticRegression(max_iter=1000).fit(rows[held:].numpy(), target[held:].numpy())
    run.score("accuracy", base=plain.score(rows[:held].numpy(), target[:held].numpy()), tuned=tuned)
    run.output_tensors("model.safetensors", {**model.state_dict(), "mean": mean, "deviation": deviation})
