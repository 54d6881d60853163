"""star doctor as a whole: the self-test's numbers, what makes it fail, the command and its JSON."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, ROOT, refused
from make_self_test import kept

from probes.doctor import examination, self_test, trial
from probes.doctor.lines import FAIL, NOTE, OK, Line
from probes.speed.llamagen import LlamaGenTransformer
from star.model.sampler import guide
from star.tokenizer.file import load_tokenizer
from star.training.checkpoint import load_model

KEPT = self_test.read_kept()


def reference(model):
    """The same weights in the other implementation of LlamaGen's transformer."""
    other = LlamaGenTransformer(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


def examined(folder, **options):
    found = list(self_test.self_test("cpu", lambda: [folder], **options))
    return {line.name: line for line in found}


# The kept numbers.


@torch.no_grad()
def test_the_reference_gives_the_logits_of_the_public_code():
    model = load_model(GOLDEN / "llamagen_gpt_tiny.pt")
    with np.load(GOLDEN / "llamagen_gpt_tiny.npz") as golden:
        tokens, labels = (torch.from_numpy(golden[name]).long() for name in ("idx", "cls"))
        expected = torch.from_numpy(golden["logits"])
    # float32 on another order of summation, values of order 1 to 10
    torch.testing.assert_close(reference(model)(tokens, labels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_kept_logits_and_tokens_are_those_of_the_reference():
    model = reference(trial.trial_model("cpu"))
    batch = trial._batch()
    found = model(batch.tokens_BMT[:, 0], batch.labels_B)[:, ::4, ::8]
    assert 0.5 < found.std() < 2, "the tolerances are meant for numbers of order 1"
    torch.testing.assert_close(found, torch.tensor(KEPT["logits"]), rtol=1e-5, atol=1e-5)
    tokens, labels = torch.tensor(KEPT["greedy"]), torch.tensor([3, 8])
    with_class = model(tokens[:, :-1], labels)
    without = model(tokens[:, :-1], torch.full_like(labels, model.output.weight.new_tensor(10).int()))
    best = guide(with_class, without, 2.0).topk(2)
    assert torch.equal(best.indices[..., 0], tokens)
    # Far above the 1e-4 that float32 may differ by: no machine may take another token.
    assert (best.values[..., 0] - best.values[..., 1]).min() > 0.02
    assert min(len(set(row)) for row in KEPT["greedy"]) > 8, "a model that repeats itself shows little"


def test_the_kept_indices_are_the_nearest_codes_by_far():
    tokenizer = load_tokenizer()
    z_EN = tokenizer.encode_features(trial.image())[0].flatten(1)
    codes_VE = F.normalize(tokenizer.quantize.embedding.weight, dim=-1)
    best = (F.normalize(z_EN.T, dim=-1) @ codes_VE.T).topk(2)
    assert best.indices[:, 0].tolist() == KEPT["indices"] and len(set(KEPT["indices"])) > 50
    assert (best.values[:, 0] - best.values[:, 1]).min() > 1e-3


def test_the_kept_file_is_what_the_program_computes():
    found = kept()
    assert list(found) == list(KEPT)
    assert found["greedy"] == KEPT["greedy"] and found["indices"] == KEPT["indices"]
    assert found["draws"]["numpy"] == KEPT["draws"]["numpy"]
    np.testing.assert_allclose(found["draws"]["torch"], KEPT["draws"]["torch"], atol=1e-5)
    np.testing.assert_allclose(found["logits"], KEPT["logits"], atol=1e-5)
    for step, expected in zip(found["losses"], KEPT["losses"], strict=True):
        assert step == pytest.approx(expected, rel=1e-4)
        parts = step["ar"] + step["mim"] + 0.25 * (step["step_contrast"] + step["view_contrast"])
        assert step["loss"] == pytest.approx(parts, rel=1e-5)
    assert KEPT["losses"][1]["loss"] < KEPT["losses"][0]["loss"] - 0.1, "the first step has an effect"


# The self-test.


def test_every_test_passes_here_and_leaves_nothing(tmp_path):
    found = examined(tmp_path)
    assert list(found) == [
        "random numbers", "logits", "half precision", "greedy tokens", "training steps", "checkpoint",
        "tokenizer", "gloo",
    ]  # fmt: skip
    assert {line.status for line in found.values()} == {OK}, found
    assert all(line.value.endswith(" s)") and not line.advice for line in found.values())
    assert found["half precision"].value.startswith("bfloat16: largest difference")
    assert "allowed 0.0001" in found["logits"].value
    assert not list(tmp_path.iterdir()) and not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("weight", "value"), [("layers.1.attention.wqkv.weight", 0.5), ("norm.weight", float("nan"))]
)
def test_one_wrong_weight_fails_what_uses_it_and_nothing_else(weight, value, tmp_path, monkeypatch):
    real = trial.trial_model

    def broken(device):
        model = real(device)
        model.get_parameter(weight).data[:8] = value
        return model

    monkeypatch.setattr(trial, "trial_model", broken)
    found = examined(tmp_path)
    wrong = {name for name, line in found.items() if line.status == FAIL}
    assert {"logits", "half precision", "greedy tokens", "training steps"} <= wrong
    assert {"random numbers", "tokenizer", "gloo"} == set(found) - wrong - {"checkpoint"}
    assert "cannot be trusted" in found["logits"].advice
    assert ("checkpoint" in wrong) == (value != value), "a run that is not finite makes no step"


def test_tolerances_are_kept_on_both_sides(tmp_path):
    for shift, status in ((5e-5, OK), (2e-4, FAIL)):
        moved = {**KEPT, "logits": (np.array(KEPT["logits"]) + shift).tolist()}
        assert examined(tmp_path, read=lambda moved=moved: moved)["logits"].status == status
    other = {**KEPT, "indices": [KEPT["indices"][0] + 1, *KEPT["indices"][1:]], "greedy": [[1, 2]]}
    found = examined(tmp_path, read=lambda: other)
    assert found["tokenizer"].status == FAIL and "63 of 64 indices" in found["tokenizer"].value
    assert found["greedy tokens"].status == FAIL and "shape (2, 16)" in found["greedy tokens"].value


def test_a_test_that_raises_says_why_and_the_others_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trial, "save_checkpoint", full)
    monkeypatch.setattr(trial, "draws", lambda: 1 / 0)
    found = examined(tmp_path)
    assert found["checkpoint"].status == FAIL and "No space left on device" in found["checkpoint"].value
    assert "STAR_CACHE" in found["checkpoint"].advice
    assert found["random numbers"].value == "ZeroDivisionError: division by zero"
    assert "could not be made" in found["random numbers"].advice
    assert found["logits"].status == OK and not list(tmp_path.iterdir())


def test_what_comes_back_from_the_disk_is_compared_bit_for_bit(tmp_path, monkeypatch):
    real = trial.load_checkpoint

    def damaged(path, **options):
        content = real(path, **options)
        next(iter(content["optimizer"]["state"].values()))["exp_avg"].view(-1)[0] += 1e-7
        return content

    monkeypatch.setattr(trial, "load_checkpoint", damaged)
    line = examined(tmp_path)["checkpoint"]
    assert line.status == FAIL and "not equal" in line.value


def test_the_checkpoint_goes_where_files_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "gone", tmp_path / "file", tmp_path]
    found = {line.name: line for line in self_test.self_test("cpu", lambda: places)}
    assert found["checkpoint"].status == OK and f"saved in {tmp_path} " in found["checkpoint"].value
    found = {line.name: line for line in self_test.self_test("cpu", lambda: places[:2])}
    assert found["checkpoint"].status == FAIL and "no folder can" in found["checkpoint"].value


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, "float16: largest"), (torch.float32, "not tested: this card has no units for it")],
)
def test_a_card_without_bfloat16_is_tested_in_what_it_has(dtype, value, monkeypatch):
    monkeypatch.setattr("star.base.device.resolve_precision", lambda name, device: dtype)
    monkeypatch.setattr(trial, "trial_model", lambda device, real=trial.trial_model: real("cpu"))
    monkeypatch.setattr("star.base.device.autocast", lambda device, dtype: torch.autocast("cpu", dtype))
    right, found = self_test._half("cuda:0", KEPT)
    assert right and found.startswith(value)


# The whole examination and the command.


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A user with a home folder, a cache in it, and secrets in the environment."""
    home = tmp_path / "home" / "ann"
    (home / "work").mkdir(parents=True)
    for name, value in {
        "HOME": home,
        "STAR_CACHE": home / "cache",
        "TORCH_HOME": home / "torch",
        "NCCL_AUTH_TOKEN": "topsecret-1",
        "WANDB_API_KEY": "topsecret-2",
        "AWS_SECRET_ACCESS_KEY": "topsecret-3",
        "TORCH_MIRROR": "https://ann:topsecret-4@mirror.example/x",
    }.items():
        monkeypatch.setenv(name, str(value))
    return home


def test_json_holds_every_line_and_no_secret(star, stranger, monkeypatch):
    code, out, _ = star("doctor", "--device", "cpu", "--json")
    data = json.loads(out)
    assert code == 0 and set(data) == {"status", "lines"} and data["status"] in (OK, NOTE)
    for line in data["lines"]:
        assert list(line) == ["section", "name", "status", "value", "advice"]
        assert all(isinstance(value, str) for value in line.values())
        assert line["status"] in (OK, NOTE, FAIL) and (line["advice"] or line["status"] == OK)
    assert list(dict.fromkeys(line["section"] for line in data["lines"])) == [
        "versions", "platform", "processor", "cores and threads", "environment", "memory", "folders",
        "devices", "several processes", "compiler", "drawing", "self-test on cpu",
    ]  # fmt: skip
    found = {line["name"]: line["value"] for line in data["lines"]}
    assert found["torch"].startswith(torch.__version__)
    assert found["cache"].startswith("~/cache (not made yet): can be written")
    assert found["TORCH_HOME"].startswith("~/torch")
    assert found["TORCH_MIRROR"].startswith("https://mirror.example/x")
    assert "topsecret" not in out and str(stranger) not in out


def test_text_says_the_same_and_names_the_home_nowhere(star, stranger):
    code, out, err = star("doctor", "--device", "cpu")
    assert code == 0 and not err and str(stranger) not in out and "topsecret" not in out
    lines = out.splitlines()
    assert lines[0] == "star doctor: a bug report should hold all of this"
    assert lines[1:3] == ["", "versions"] and lines[3].startswith("  ok    star-autoregressive: ")
    assert "  ok    greedy tokens: 32 of 32 tokens as expected" in out
    assert lines[-1] == "All is right." or lines[-1].startswith("0 wrong, ")
    assert not (stranger / "cache").exists()


def test_a_self_test_that_fails_ends_with_1_in_both_forms(star, monkeypatch):
    monkeypatch.setattr(trial, "greedy", lambda model: [[0] * 16, [0] * 16])
    monkeypatch.setattr(examination.versions, "PACKAGES", ())
    code, out, err = star("doctor", "--device", "cpu")
    assert code == 1 and not err
    assert "  FAIL  greedy tokens: 0 of 32 tokens" in out and "        results of this device" in out
    assert "1 wrong (greedy tokens), " in out.splitlines()[-1]
    code, out, _ = star("doctor", "--device", "cpu", "--json")
    assert code == 1 and json.loads(out)["status"] == FAIL


def test_a_broken_optional_package_is_to_note_and_its_greeting_stays_out_of_json(
    star, tmp_path, monkeypatch
):
    (tmp_path / "timm.py").write_text("print('welcome to timm')\nimport no_such_part_of_timm\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    code, out, err = star("doctor", "--device", "cpu", "--json")
    data = json.loads(out)
    line = next(line for line in data["lines"] if line["name"] == "timm")
    assert code == 0 and data["status"] == NOTE and line["status"] == NOTE
    assert "cannot be imported (ModuleNotFoundError: No module named 'no_such_part" in line["value"]
    assert "welcome" in err and "Traceback" not in err


def test_bad_options_are_refused_before_anything_is_examined(star, monkeypatch):
    assert refused(star("doctor", "--device", "gpu"), "device is 'gpu'; expected auto, cpu, cuda")
    assert refused(star("doctor", "--device", "cuda:9", "--json"), "'cuda:9'; this machine has")
    assert refused(star("doctor", "--device", "cpu", "--all"), "leave one of them out")
    monkeypatch.setattr(os, "getcwd", lambda: os.stat("gone"))
    assert refused(star("doctor"), "the working folder cannot be read (No such file or directory)")
    monkeypatch.undo()
    monkeypatch.setenv("RANK", "0")
    assert refused(star("doctor"), "start it without torchrun")


def test_all_examines_the_cpu_and_every_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert examination._devices("auto", True) == ["cpu", "cuda:0", "cuda:1"]
    assert examination._devices("cpu", False) == ["cpu"]


def test_the_first_lines_come_before_anything_heavy_is_imported():
    script = (
        "import sys; from probes.doctor.examination import examine; lines = examine()\n"
        "print(next(lines).name, next(lines).name); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stdout) == (0, "star-autoregressive Python\n"), done.stderr


def environment(*paths):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}


def test_a_torch_that_cannot_be_loaded_is_lines_too(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object')\n")
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "doctor", "--device", "cpu"],
        capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    lines = done.stdout.splitlines()
    torch_line = next(line for line in lines if " torch: " in line)
    assert torch_line.startswith("  FAIL") and "libcudart.so.13: cannot open" in torch_line
    assert any(line.startswith("  ok    system: ") for line in lines), "the rest is told"
    assert any(line.startswith("  FAIL  tokenizer: OSError: libcudart") for line in lines)


def test_the_worst_line_decides():
    right, note = Line("s", "a", OK, ""), Line("s", "b", NOTE, "", "do")
    assert examination.worst([]) == OK and examination.worst([right, note]) == NOTE
    assert examination.worst([note, Line("s", "c", FAIL, "", "do"), right]) == FAIL
