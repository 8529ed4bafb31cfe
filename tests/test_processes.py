"""Several processes train one student: torchrun and accelerate launch, on CPUs (gloo)."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.test_fit import SFT, run

# As modules: an environment that borrows torch from another has no scripts of it.
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}


def test_two_processes_train_as_one_does(finished_copy: Path) -> None:
    folder = finished_copy / "data/runs/tiny"
    before = losses(folder)
    for stage in ("train", "evaluate"):
        shutil.rmtree(folder / stage)
    # Two halves of each batch: the same batches as one process has.
    sets = ["train.sft.per_device_train_batch_size=8", "train.sft.max_steps=100", "train.baselines=[]"]
    stage = ["-m", "pipeline.stages.train", "tiny.yaml", *(word for one in sets for word in ("--set", one))]
    # accelerate starts one process alone on CPUs, unless it takes them for GPUs.
    machine = {"distributed_type": "MULTI_GPU", "use_cpu": True, "num_processes": 2, "num_machines": 1}
    (finished_copy / "two.yaml").write_text(json.dumps(machine | {"mixed_precision": "no"}))
    launch = ["accelerate", "launch", "--config_file", "two.yaml"]
    done = started([*launch, *stage, "--run", "tiny"], finished_copy)
    assert done.stderr.count("train: student of") + done.stdout.count("train: student of") == 1  # only one speaks
    assert losses(folder)[:3] == pytest.approx(before[:3], rel=1e-2)
    assert json.loads((folder / "train/manifest.json").read_text())["counts"]["training"]["student"]["steps"] == 100
    # A stage that is complete is skipped, and nobody waits for the other.
    done = started(["torchrun", "--standalone", "--nproc-per-node", "2", *stage], finished_copy)
    assert "complete, skipped" in done.stderr + done.stdout


def started(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", LAUNCHERS[words[0]], *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["model"] == "student" and "loss" in event]


FSDP = """\
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_state_dict_type: SHARDED_STATE_DICT}
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
"""

# accelerate 1.15 shards on GPUs only. Told that these processes have one each, it does so on CPUs: the rest is as ever.
SHARDED = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import torch
from accelerate.state import DistributedType, PartialState
PartialState._prepare_backend = lambda self, *args, **more: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
torch.distributed.init_process_group("gloo")
from pipeline import checkpoints
from stages.test_fit import SFT, run
checkpoints.SAVE_EVERY_S = 0.0
def stop(event):
    if event["step"] == 12:
        raise KeyboardInterrupt
sft = {{**SFT, "max_steps": 15, "per_device_train_batch_size": 2}}
folder = Path(sys.argv[1])
try:
    run(folder / "full", sft, log=stop)
except KeyboardInterrupt:
    pass
print(run(folder / "full", sft))
print(run(folder / "lora", sft, config={{"lora": {{"r": 2, "target_modules": "all-linear"}}}}))
torch.distributed.destroy_process_group()
"""


def test_fsdp_shards_and_the_student_is_whole(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.teachers.local import load

    here = Path(__file__).resolve().parent
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    (tmp_path / "sharded.py").write_text(SHARDED.format(tests=str(here), root=str(here.parent)))
    done = started(["accelerate", "launch", "--config_file", "fsdp.yaml", "sharded.py", str(tmp_path)], tmp_path)
    assert done.stdout.count("'resumed_from': 10") == 2 and done.stdout.count("'resumed_from': None") == 2
    sealed = json.loads((tmp_path / "full/checkpoints/checkpoint-10/complete.json").read_text())
    assert {"optimizer_0/__0_0.distcp", "pytorch_model_fsdp_0/__1_0.distcp", "rng_state_1.pth"} <= sealed.keys()
    one = run(tmp_path / "one", {**SFT, "max_steps": 15})
    expected = load_file(tmp_path / "one/out/model.safetensors")
    for name in ("full", "lora"):
        weights = load_file(tmp_path / name / "out/model.safetensors")
        assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in expected.items()}
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())
        assert load(tmp_path / name / "out").model.num_parameters() == one["parameters"]
        assert logged(tmp_path / name)[-1] < logged(tmp_path / name)[0]
    # The same batches as one process has, in halves: only dropout differs.
    assert logged(tmp_path / "full") == pytest.approx(logged(tmp_path / "one"), rel=0.1)


def logged(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if "loss" in event]


ZERO = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import torch
from stages.test_fit import SFT, run
stage3 = {{"stage": 3, "stage3_param_persistence_threshold": 0}}
sft = {{**SFT, "max_steps": 15, "per_device_train_batch_size": 4 // {processes}}}
sft["deepspeed"] = {{
    "zero_optimization": stage3, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"
}}
for name, config in (("full", {{}}), ("lora", {{"lora": {{"r": 2, "target_modules": "all-linear"}}}})):
    print(run(Path(sys.argv[1]) / name, dict(sft), config=config))
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_shards_and_the_student_is_whole(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.teachers.local import load

    # On a machine with GPUs NCCL gives each process one.
    processes = min(2, torch.cuda.device_count() or 2)
    here = Path(__file__).resolve().parent
    (tmp_path / "zero.py").write_text(ZERO.format(tests=str(here), root=str(here.parent), processes=processes))
    started(["torchrun", "--standalone", "--nproc-per-node", str(processes), "zero.py", str(tmp_path)], tmp_path)
    one = run(tmp_path / "one", {**SFT, "max_steps": 15})
    expected = load_file(tmp_path / "one/out/model.safetensors")
    for name in ("full", "lora"):
        weights = load_file(tmp_path / name / "out/model.safetensors")
        assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in expected.items()}
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())
        assert load(tmp_path / name / "out").model.num_parameters() == one["parameters"]
        assert logged(tmp_path / name)[-1] < logged(tmp_path / name)[0]
    assert logged(tmp_path / "full") == pytest.approx(logged(tmp_path / "one"), rel=0.1)
