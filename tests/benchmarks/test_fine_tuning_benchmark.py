"""benchmarks.fine_tuning: every stage and every kind of operation is timed and named."""

import re
from dataclasses import replace

import pytest

from benchmarks import fine_tuning, training
from training.recipes import ORIGINAL


def test_the_tables_account_for_all_of_the_time(monkeypatch, drawn, capsys):
    monkeypatch.setattr(training, "ORIGINAL", replace(ORIGINAL, input_size=71))
    monkeypatch.setattr(fine_tuning, "SETTINGS", ((71, 5), (71, 14)))
    flags = ["--data", str(drawn), "--images", "10", "--rounds", "1"]
    assert fine_tuning.main(flags) == 0
    stages, operations, steps = capsys.readouterr().out.strip().split("\n\n")

    rows = re.findall(r"^\| (.+) \| ([\d,]+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+)% \|$", stages, re.M)
    assert [name for name, *_ in rows[2:4]] == [
        "training, 18 epochs",
        "validation after each epoch",
    ]
    assert all(float(speed) > 0 for _, _, speed, _ in rows)
    assert sum(float(share) for *_, share in rows) == pytest.approx(100, abs=0.5)

    spent = dict(re.findall(r"^\| (.+) \| (\d+) \| [\d.]+% \|$", operations, re.M))
    assert set(spent) == {kind for kind, _, _ in fine_tuning.KINDS}
    assert sorted(map(int, spent.values()), reverse=True) == list(map(int, spent.values()))
    assert all(int(spent[kind]) > 0 for kind in spent if "1×1" in kind)

    ratios = re.findall(r"from block (\d+) on, 71×71 pixels \| [\d.]+ \| ([\d.]+) \|$", steps, re.M)
    assert [block for block, _ in ratios] == ["5", "14"]
    assert ratios[0][1] == "1.0"


@pytest.mark.parametrize(
    ("path", "operation", "kind"),
    [
        ("upper/block8_sepconv3/separable_conv2d", "_MklNativeConv2D", "1×1 convolutions, forward"),
        ("upper/conv2d_3/convolution", "Conv2D", "1×1 convolutions, forward"),
        (
            "gradient_tape/upper/block8_sepconv3/separable_conv2d/Conv2DBackpropFilter",
            "_MklNativeConv2DBackpropFilter",
            "1×1 convolutions, gradient of kernels",
        ),
        (
            "gradient_tape/upper/block8_sepconv3/separable_conv2d/Conv2DBackpropInput",
            "Conv2DBackpropInput",
            "1×1 convolutions, gradient of inputs",
        ),
        (
            "upper/block7_sepconv3/separable_conv2d/depthwise",
            "_MklNativeDepthwiseConv2dNative",
            "depthwise 3×3 convolutions, forward",
        ),
        (
            "gradient_tape/upper/block14_sepconv2/separable_conv2d/x",
            "DepthwiseConv2dNativeBackpropInput",
            "depthwise 3×3 convolutions, gradient of inputs",
        ),
        ("upper/block5_sepconv3_bn/Cast", "Cast", "batch normalization, with its casts"),
        ("upper/batch_normalization_3/mul", "Mul", "batch normalization, with its casts"),
        ("gradient_tape/upper/block14_sepconv2_act/ReluGrad", "ReluGrad", "ReLU"),
        ("sgd/Mul_164", "Mul", "optimizer"),
        ("AddN_5", "AddN", "the rest: residual sums, pooling, head, other casts"),
    ],
)
def test_an_operation_belongs_to_one_kind(path, operation, kind):
    assert fine_tuning.classify(path, operation) == kind
