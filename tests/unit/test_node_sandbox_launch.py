"""Starting a sandbox: what is checked before, what the handle says, and the full image with its libraries."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.errors import Misuse, Unavailable
from cloister.node import Limits, bubblewrap, build_image, launch, launch_spec, measure_tree, measurement
from tests.sandbox_kit import Box, box, workplace


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


@pytest.mark.parametrize("code", [0, 1, 20, 77])
def test_the_exit_code_is_the_programs(inside: Box, code: int) -> None:
    with inside.start(f"sys.exit({code})") as sandbox:
        assert sandbox.wait(30) == code
        assert sandbox.exit_code == code


def test_a_running_sandbox_has_no_exit_code_and_a_wait_may_end(inside: Box) -> None:
    with inside.start("import time; time.sleep(600)") as sandbox:
        assert sandbox.exit_code is None
        assert sandbox.wait(0.05) is None
        assert sandbox.limits is not None
        assert sandbox.limits.memory in ("rlimit", "cgroup-v1", "cgroup-v2")
    assert sandbox.exit_code == 137


def test_output_goes_nowhere_unless_a_log_is_asked_for(inside: Box, capfd: pytest.CaptureFixture[str]) -> None:
    with launch(inside.spec("print('a row of data')")) as sandbox:
        assert sandbox.wait(30) == 0
    assert capfd.readouterr() == ("", "")
    assert inside.run("print('a row of data')") == "a row of data\n"
    assert inside.log.stat().st_mode & 0o777 == 0o600


def test_the_environment_is_the_measured_one(inside: Box) -> None:
    spec = inside.spec("", env={"EXTRA": "1"})
    seen = inside.probe("dict(os.environ)", env={"EXTRA": "1"})
    assert {k: v for k, v in seen.items() if k != "PWD"} == spec.environment


def test_measuring_what_runs_is_repeatable(inside: Box) -> None:
    tree, spec = measure_tree(inside.image), launch_spec(inside.spec("x"))
    inside.run("import json, ssl, asyncio")
    assert measurement(measure_tree(inside.image), launch_spec(inside.spec("x"))) == measurement(tree, spec)


def test_what_would_fail_later_is_said_before(inside: Box) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": inside.folder / "missing"}, "sandbox.source"),
        ({"rw_binds": {"/out": inside.folder / "missing"}}, "sandbox.source"),
        ({"ro_binds": {"/job": inside.job / "job.json"}}, "sandbox.source"),
        ({"socket_path": inside.folder / "missing"}, "sandbox.socket"),
        ({"socket_path": inside.job / "job.json"}, "sandbox.socket"),
        ({"argv": ("/usr/bin/missing",)}, "sandbox.program"),
    ]
    for changes, code in cases:
        with pytest.raises(Misuse) as caught:
            launch(inside.spec("", **changes))
        assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a sandbox as somebody who can't reach a folder")
def test_a_private_folder_on_the_way_is_named(inside: Box) -> None:
    inside.job.chmod(0o700)
    with pytest.raises(Misuse, match=str(inside.job)) as caught:
        launch(inside.spec(""))
    assert caught.value.code == "path.traverse"


def test_missing_bubblewrap_is_said(inside: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_BWRAP", ("/nonexistent/bwrap",))
    with pytest.raises(Unavailable, match="not installed") as caught:
        launch(inside.spec(""))
    assert caught.value.code == "sandbox.bwrap"


def test_bubblewraps_own_reason_is_told_and_nothing_stays(inside: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bubblewrap.bubblewrap_arguments
    wrong = [*real(inside.spec("")), "--ro-bind", "/nonexistent/source", "/tmp/x"]
    monkeypatch.setattr("cloister.node.sandbox.bubblewrap_arguments", lambda spec: wrong)
    monkeypatch.setattr(bubblewrap, "bubblewrap_arguments", lambda spec: wrong)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="/nonexistent/source") as caught:
        launch(inside.spec(""))
    assert caught.value.code == "sandbox.setup"
    assert set(os.listdir("/proc/self/fd")) <= before  # what other tests left may be closed meanwhile


def test_a_bwrap_that_refuses_its_options_is_told(inside: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ["--no-such-option"]
    monkeypatch.setattr("cloister.node.sandbox.bubblewrap_arguments", lambda spec: wrong)
    monkeypatch.setattr(bubblewrap, "bubblewrap_arguments", lambda spec: wrong)
    with pytest.raises(Unavailable, match="no-such-option") as caught:
        launch(inside.spec(""))
    assert caught.value.code == "sandbox.setup"


def test_a_program_that_ends_between_two_looks_has_run() -> None:
    read, write = os.pipe()
    looks = iter([False, True])
    pipes: Any = SimpleNamespace(go_write=write, taken=lambda: next(looks))
    monitor: Any = SimpleNamespace(poll=lambda: 0)
    try:
        assert bubblewrap.release(pipes, monitor)
    finally:
        os.close(read)
        os.close(write)


def test_a_bwrap_that_hangs_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_SETUP_SECONDS", 0.05)
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        with pytest.raises(Unavailable, match="does not end") as caught:
            bubblewrap.await_end(process)
        assert caught.value.code == "sandbox.setup"
        assert process.wait(60) == -signal.SIGKILL


def test_no_descriptor_leaks_over_many_launches(inside: Box) -> None:
    inside.run("pass")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        inside.run("pass")
    assert set(os.listdir("/proc/self/fd")) <= before


_TRAIN = """
import torch, transformers, peft, accelerate, sklearn.linear_model, pandas, pyarrow.parquet, safetensors.torch
import cloister.crypto, cloister.workload
from transformers import BertConfig, BertForSequenceClassification
torch.set_num_threads(1)
size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32)
base = BertForSequenceClassification(BertConfig(**size))
model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"]))
loss = model(input_ids=torch.randint(0, 32, (2, 8)), labels=torch.tensor([0, 1])).loss
loss.backward()
# torch makes two modules up and gives them file names without a folder.
files = [f for f in (getattr(m, "__file__", None) for m in list(sys.modules.values())) if f and os.path.isabs(f)]
outside = [f for f in files if not f.startswith(("/usr/lib/python3", "/opt/cloister/lib/"))]
print("trained", bool(loss > 0), outside)
"""


@pytest.mark.slow
def test_the_full_image_trains_in_the_sandbox(inside: Box) -> None:
    image = build_image(workplace() / "image")
    output = inside.run(_TRAIN, image=image, limits=Limits(memory_bytes=4 * 2**30))
    assert output.splitlines()[-1] == "trained True []"
