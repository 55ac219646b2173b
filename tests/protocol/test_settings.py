"""Presets, protocols and the settings that they are made of: what is chosen, what wins, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from protocol_cases import begun, last_weights, trained, trainer
from torch import nn
from training_cases import run as command
from training_cases import vectors, waves

from igm_fast import train
from igm_fast.methods import METHODS, Stage
from igm_fast.methods.joint import Joint
from igm_fast.methods.late import Late
from igm_fast.methods.unimodal import Unimodal
from igm_fast.models.multimodal import build_head
from igm_fast.training import building, checkpoint, config, evaluation
from igm_fast.training.command import HELP_GROUPS, UsageError, parse
from igm_fast.training.config import TrainConfig
from igm_fast.training.schedules import learning_rate, with_shares

SETS = ("crema-d", "ksounds", "twitter2015", "sarcasm", "nvgesture")
PAPER = {  # stages, epochs of the turns, batch, rule, rate, width
    "crema-d": (6, "25,50", 12, "sgd", 0.01, 512),
    "ksounds": (2, "25,50", 12, "sgd", 0.01, 512),
    "twitter2015": (2, "10,30", 12, "adam", 1e-5, 768),
    "sarcasm": (2, "2,30", 12, "adam", 1e-5, 768),
    "nvgesture": (2, "50,50,50", 6, "sgd", 0.01, 1024),
}


def printed(capsys, *flags):
    assert train.main([*flags, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


# ---- presets and protocols -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SETS)
def test_presets_have_the_papers_values(data, capsys):
    settings = printed(capsys, "--data", data)
    keys = ("stages", "stage_epochs", "batch_size", "optimizer", "lr", "width")
    assert tuple(settings[key] for key in keys) == PAPER[data]
    assert settings["epochs"] == settings["stages"] * max(map(int, settings["stage_epochs"].split(",")))
    assert (settings["weight_decay"], settings["momentum"], settings["head_widths"]) == (1e-4, 0.9, "256,64")
    assert settings["betas"] == ("0.9,0.99" if settings["optimizer"] == "adam" else "0.9,0.999")
    honest = {"protocol": "paper", "selection": "validation", "stage_start": "last", "schedule": "cosine"}
    papers = {"rho": 0.05, "tau": 0.4, "perturbation": "full", "mixup": "none", "layers": "all", "statistics": "ride"}
    assert settings | honest | papers == settings


@pytest.mark.parametrize("data", [*SETS, "watch", "emoji", "digits3"])
def test_the_official_protocol_sets_what_the_authors_code_does(data, capsys):
    settings = printed(capsys, "--data", data, "--protocol", "official")
    always = {"selection": "test", "stage_start": "best", "head_widths": "256,64", "layers": "heads", "match": "shape"}
    always |= {"estimator": "batch_mean", "statistics": "pass", "mixup": "official", "perturbation": "official"}
    always |= {"flat_ratio": 0.3, "tau": 0.4, "noise_ratio": 1e-10 if data in ("crema-d", "ksounds") else 1e-15}
    if data not in SETS:
        always["noise_ratio"] = 1e-10
    text = data in ("twitter2015", "sarcasm")
    always |= {"schedule": "warmup" if text else "step", "mixup_alpha": 0.9 if data == "twitter2015" else 1.0}
    always["select_by"] = "accuracy" if data == "twitter2015" else "macro_f1"
    assert settings | always == settings
    assert printed(capsys, "--data", data, "--protocol", "official", "--method", "mla")["form"] == "official"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("protocol", ["paper", "official"])
def test_every_method_has_both_protocols(name, protocol):
    modality = ["--modality", "audio"] if name == "unimodal" else []
    made = parse(["--data", "crema-d", "--method", name, "--protocol", protocol, *modality])
    assert made.config.selection == ("test" if protocol == "official" else "validation")
    assert config.from_flat(made.settings) == (made.config, made.method)


def test_flags_and_files_win_over_the_protocol(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("protocol: official\nselect_by: map\nlayers: none\n")
    settings = printed(capsys, "--config", str(file), "--mixup", "plain", "--selection", "validation")
    assert [settings[key] for key in ("select_by", "layers", "mixup", "selection")] == [
        "map",
        "none",
        "plain",
        "validation",
    ]
    assert settings["stage_start"] == "best"
    file.write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", str(file)) == settings


def test_epochs_follow_from_the_epochs_of_the_stages():
    assert parse(["--data", "crema-d", "--stages", "2"]).config.epochs == 100
    assert parse(["--stage_epochs", "3,1,2,2", "--stages", "5"]).config.epochs == 15
    shorter = parse(["--data", "crema-d", "--epochs", "12"]).config
    assert (shorter.epochs, shorter.stage_epochs) == (12, "")
    with pytest.raises(ValueError, match="epochs is 9, expected 8, or nothing: stage_epochs is 3,4 in 2 stages"):
        parse(["--stage_epochs", "3,4", "--stages", "2", "--epochs", "9"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "workers is -1, expected 0 or more"),
        ({"betas": "0.9"}, "betas is '0.9', expected two numbers"),
        ({"betas": "0.9,1.0"}, "betas is 0.9,1.0, expected two numbers, each 0 ≤ beta < 1"),
        ({"head_widths": "256;64"}, "head_widths is '256;64', expected whole numbers separated by commas"),
        ({"head_widths": "256,0"}, "head_widths is 256,0, expected numbers of at least 1"),
        ({"stage_epochs": "25,x"}, "stage_epochs is '25,x'"),
        ({"stage_epochs": "0,0", "epochs": 4}, "stage_epochs is 0,0, expected numbers of at least 1"),
        ({"encoders": "video"}, "encoders is 'video', expected NAME=VALUE pairs"),
        ({"pretrained": "text=a,text=b"}, "pretrained is 'text=a,text=b'.* each modality once"),
        ({"stage_start": "best"}, "stage_start is best with statistics ride.*Give --statistics pass"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        config.from_flat(settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "offical"], "unknown protocol 'offical'. Did you mean 'official'"),
        (["--selection", "tset"], "unknown selection 'tset'. Did you mean 'test'"),
        (["--select_by", "f1"], "Known: accuracy, macro_f1, map"),
        (["--stage_start", "bset"], "Did you mean 'best'"),
        (["--schedule", "cosin"], "Did you mean 'cosine'"),
        (["--validation_by", "speaker"], "Known: group, sample"),
        (["--method", "joint", "--mixup", "plain"], "mixup is an option of igm-no-sam, igm, not of joint"),
    ],
)
def test_misspelt_words_are_answered(flags, message):
    with pytest.raises(UsageError) as error:
        parse(flags)
    assert message in str(error.value)


def test_wrong_usage_ends_before_anything_is_written(tmp_path, capsys):
    for flags, message in (
        (
            ["--stage_epochs", "1,2", "--stages", "1"],
            "stage_epochs is 1,2, expected 3 numbers, one for each of fourier",
        ),
        (["--encoders", "sound=small"], "encoders: unknown modality of digits3 'sound'"),
        (["--data_root", "/nowhere"], "data set 'digits3' comes with the package"),
        (["--pretrained", f"fourier={tmp_path}/none.pt"], "there are no weights here"),
    ):
        assert command(tmp_path / "run", "--data", "digits3", *flags, short=("--quiet",)) in (1, 2)
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run" / "result.json").exists()


def test_help_has_a_place_for_every_setting():
    assert sorted(key for keys in HELP_GROUPS.values() for key in keys) == sorted(config.config_keys())


def test_data_options():
    given = TrainConfig(
        data_root="/d", cache="/c", protocol="official", skip_bad=True, encoders="video=resnet18", pretrained="text=/t"
    )
    options = given.data_options()
    assert (str(options.root), str(options.cache), options.protocol, options.skip_bad) == ("/d", "/c", "official", True)
    assert options.encoders == {"video": "resnet18"}
    assert {name: str(path) for name, path in options.pretrained.items()} == {"text": "/t"}
    assert TrainConfig().data_options().root is None


# ---- rates and stages ------------------------------------------------------------------------------------------------


def test_rates_by_hand():
    rates = [learning_rate("step", 0.01, epoch, 0.5, 50) for epoch in (0, 38, 39, 49, 78, 79)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.001, 0.0001])
    assert [learning_rate("warmup", 3e-5, epoch, 0.5, 9) for epoch in (0, 1, 8)] == pytest.approx([2e-5, 3e-5, 3e-5])
    assert {learning_rate("constant", 0.1, epoch, 0.3, 9) for epoch in range(9)} == {0.1}
    assert learning_rate("cosine", 0.1, 1, 0.5, 3) == pytest.approx(0.05)


def test_the_step_schedule_is_torchs_stepped_before_the_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.1)
    for epoch in range(130):
        optimizer.step()
        schedule.step()
        assert learning_rate("step", 0.01, epoch, 0.0, 130) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_stages_last_their_share():
    shares = TrainConfig(stage_epochs="25,50", stages=6, epochs=300).stage_shares(["audio", "video"])
    totals = {}
    for name in ("late", "igm", "reconboost"):
        stages = with_shares(METHODS[name]().schedule(["audio", "video"], 300, 6), shares)
        totals[name] = [sum(s.epochs for s in stages if s.modalities == (m,)) for m in ("audio", "video")]
    assert totals["late"] == totals["igm"] == [150, 300]
    assert totals["reconboost"] == [48, 100]  # four stages of 17 epochs and two of 16; half of 17 is 8 here
    assert sum(s.epochs for s in with_shares(Unimodal("audio").schedule(["audio"], 300, 6), shares)) == 150
    assert with_shares(Joint().schedule(["audio", "video"], 300, 6), shares)[0].epochs == 300
    assert with_shares([Stage(0, 0, ("audio",), 1)], {"audio": 0.1})[0].epochs == 1


def test_optimizers():
    model = nn.Linear(3, 2)
    for rule, decoupled in (("adam", False), ("adamw", True)):
        made = building.build_optimizer(TrainConfig(optimizer=rule, betas="0.8,0.95"), Late(), model)
        (group,) = made.param_groups
        assert (made.base, group["betas"], group["decoupled"]) == ("adamw", (0.8, 0.95), decoupled)
    assert building.build_optimizer(TrainConfig(), Late(), model).param_groups[0]["momentum"] == 0.9


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_head_of_several_layers():
    head = build_head(8, 3, (6, 5))
    weights = [p.detach().numpy().astype(float) for p in head.parameters()]
    h = np.random.default_rng(0).normal(size=(4, 8))
    z = np.maximum(h @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]
    expected = z @ weights[4].T + weights[5]
    np.testing.assert_allclose(head(torch.from_numpy(h).float()).detach().numpy(), expected, atol=1e-5)
    assert isinstance(build_head(8, 3), nn.Linear)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_heads_of_several_layers(name, tmp_path):
    method = METHODS[name](modality="left") if name == "unimodal" else METHODS[name]()
    run = trained(method, vectors(), tmp_path, head_widths="6,5", epochs=3, stages=1)
    own = [key for key in last_weights(run) if ".head." in key]
    linear = method.heads() in ("joint", "shared", "boosted")
    assert (own == []) == linear
    assert linear or {key.split(".", 2)[2] for key in own if key.endswith("weight")} == {
        f"head.{place}.weight" for place in (0, 2, 3)
    }


# ---- selection -------------------------------------------------------------------------------------------------------


def test_selection_on_test_is_said_wherever_the_result_is(tmp_path, capsys):
    flags = ("--data", "digits3", "--epochs", "1", "--stages", "1", "--threads", "1", "--selection", "test")
    assert command(tmp_path, *flags, "--select_by", "macro_f1", short=()) == 0
    assert capsys.readouterr().out.count("warning: the weights were selected on the test set") == 2
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["selected_on"], result["selected_by"]) == ("test", "macro_f1")
    assert "selected on the test set" in result["warnings"][0]
    page = (tmp_path / "report.html").read_text()
    assert "selected on this test split" in page
    assert "selected on the test set" in page
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    fused = [line.split(",") for line in lines if ",test,fused,macro_f1," in line]
    assert {row[0] for row in fused} == {"0", "1", "2"}
    candidates = [float(row[-1]) for row in fused if row[0] == "2"]  # the last modality's epoch, and the final one
    assert candidates[0] == candidates[1] == result["test"]["fused"]["macro_f1"]


@pytest.mark.parametrize("by", ["accuracy", "macro_f1", "map"])
def test_the_named_score_on_the_named_part_decides(by, tmp_path, monkeypatch):
    values = {"validation": iter([0.1, 0.2, 0.3, 0.4]), "test": iter([0.9, 0.1, 0.8, 0.2])}
    data = vectors()

    def scores(outputs, labels):
        part = next(name for name in ("validation", "test") if labels is data.parts[name].labels)
        wanted = next(values[part], 0.0)
        return {b: dict.fromkeys(evaluation.METRICS, 0.5) | {by: wanted} for b in outputs}

    monkeypatch.setattr(evaluation, "all_scores", scores)
    run = trained(Joint(), data, tmp_path, epochs=4, stages=1, selection="test", select_by=by)
    assert run.load_best()["global_epoch"] == 0


def test_a_stage_that_never_beats_the_best_is_lost(tmp_path, monkeypatch):
    """stage_start best: its weights are those selected so far, over all stages, ties to the earlier epoch."""
    fused = iter([0.2, 0.5, 0.4, 0.5, 0.6, 0.1, 0.0, 0.0])
    monkeypatch.setattr(
        evaluation,
        "all_scores",
        lambda outputs, _labels: {
            b: dict.fromkeys(evaluation.METRICS, next(fused) if b == "fused" else 1.0) for b in outputs
        },
    )
    starts, run = [], begun(tmp_path)
    training = trainer(Late(), vectors(), run, epochs=4, stages=2, stage_start="best", keep_stages=True)
    context = training._context
    training._context = lambda stage: (
        starts.append(training.model.state_dict()["branches.left.head.weight"].clone()),
        context(stage),
    )[1]
    training._finish = dict
    seen = {}
    save = checkpoint.save

    def watched(path, state):
        save(path, state)
        if path == run.best:
            seen[state["global_epoch"]] = state["model"]["branches.left.head.weight"].clone()

    monkeypatch.setattr(checkpoint, "save", watched)
    training.train()
    run.close()
    assert list(seen) == [0, 1, 4]  # epoch 3 only equals epoch 1; epochs of the first stage count
    stages = [checkpoint.load(run.stage(index), "")["model"]["branches.left.head.weight"] for index in range(4)]
    assert torch.equal(starts[1], seen[1])
    assert torch.equal(starts[2], seen[1])  # stage 1 (right) was lost
    assert torch.equal(starts[3], seen[4])
    assert not torch.equal(starts[3], stages[2])  # the last epoch of stage 2 is not where stage 3 begins
    assert run.load_best()["global_epoch"] == 4


def test_stages_are_kept_when_asked(tmp_path):
    run = trained(Late(), waves(), tmp_path, keep_stages=True)
    kept = [checkpoint.load(run.stage(index), "") for index in range(4)]
    assert [(state["stage"], state["epoch"], state["global_epoch"]) for state in kept] == [(i, 0, i) for i in range(4)]
    assert set(kept[0]) == set(run.load_best())
    for name, value in last_weights(run).items():
        assert torch.equal(kept[3]["model"][name], value)


# ---- pretrained encoders ---------------------------------------------------------------------------------------------


def test_encoders_start_from_given_weights_and_say_what_fitted(tmp_path):
    first = trained(Unimodal("left"), vectors(), tmp_path / "first")
    given = {"pretrained": f"left={first.path}"}
    run = begun(tmp_path / "second")
    training = trainer(Late(), vectors(), run, **given)
    for name, value in first.load_best()["model"].items():
        if ".encoder." in name:
            assert torch.equal(training.model.state_dict()[name], value)
    report = json.loads((run.path / "pretrained.json").read_text())
    assert report["left"]["share"] == 1.0
    assert len(report["left"]["matched"]) == 4
    training.train()
    run.close()
    with pytest.raises(ValueError, match="unknown modality of the pretrained model 'right'"):
        trainer(Late(), vectors(), begun(tmp_path / "third"), pretrained=f"right={first.path}")
