"""A convolutional network on images: the dataset has a folder a class with PNG files of one size in it.

It is compared with the commonest class of the training images.
"""

from __future__ import annotations

import io
import json

import numpy as np
import torch
from network import network
from PIL import Image
from torch import nn


def train(run):
    settings, seed = run.settings, int(run.settings["seed"])
    paths = [path for path in run.data.paths() if path.endswith(".png")]
    classes = sorted({path.split("/")[0] for path in paths})
    images = torch.tensor(np.stack([pixels(run.data.read(path)) for path in paths])).unsqueeze(1)
    target = torch.tensor([classes.index(path.split("/")[0]) for path in paths])
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))
    images, target = images[order], target[order]
    held = max(1, int(len(paths) * settings["validation"]))

    torch.manual_seed(seed)
    model = network(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    epochs, first = int(settings["epochs"]), 0
    if run.resumed:
        first = run.resumed.step
        model.load_state_dict(run.resumed.tensors)
    for epoch in range(first, epochs):
        model.train()
        rows = torch.randperm(len(images) - held, generator=torch.Generator().manual_seed(seed + epoch)) + held
        for part in rows.split(int(settings["batch_size"])):
            loss = nn.functional.cross_entropy(model(images[part]), target[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run.report(epoch + 1, epochs, loss=loss.item())
        run.checkpoint(epoch + 1, model.state_dict())

    model.eval()
    with torch.no_grad():
        right = (model(images[:held]).argmax(1) == target[:held]).float().mean().item()
    commonest = target[held:].mode().values
    run.score("accuracy", base=(target[:held] == commonest).float().mean().item(), tuned=right)
    run.output_tensors("model.safetensors", model.state_dict())
    run.output("classes.json", json.dumps(classes).encode())


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float32) / 255.0
