"""The table of heads: what it counts, on numbers that can be worked out by hand."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/benchmarks'))
import heads  # noqa: E402


def numbers(cell: str) -> list[float]:
    return [float(value) for value in cell.split(' / ')]


@pytest.mark.parametrize('vit, dims, depth', [('base', 768, 12), ('pera-g', 1024, 40)])
def test_counts_of_the_vit_are_those_of_the_formula(vit, dims, depth):
    parameters, gflops = map(numbers, heads.count(heads.TASKS['classification'], vit))
    tokens = 1025
    layer = 24 * dims**2 * tokens + 4 * tokens**2 * dims  # linear layers; attention
    assert gflops[0] == pytest.approx(depth * layer / 1e9, rel=.01)
    assert parameters[0] == pytest.approx((depth * 12 * dims**2 + 1.8e6 * dims / 1024) / 1e6,
                                          rel=.01)
    assert gflops[1] == parameters[1] == 0  # no adapter


@pytest.mark.slow
def test_a_detector_is_counted_and_measured(monkeypatch, capsys):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(heads, 'TASKS', {
        'faster-rcnn': heads.TASKS['faster-rcnn']._replace(side=64)})
    monkeypatch.setattr(heads, 'measure_alone', heads.measure)
    monkeypatch.setattr(sys, 'argv', ['heads.py', '--tasks', 'faster-rcnn', '--vits', 'base',
                                      '--measure', '--steps', '1', '--device', 'cpu'])
    heads.main()
    rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines()
            if line.startswith('|')]
    assert len(rows) == 3 and len(rows[0]) == len(rows[2]) == 9
    adapter_and_head = numbers(rows[2][3])[1:]
    assert min(adapter_and_head) > 10
    assert all(float(value) > 0 for value in rows[2][5:])
    assert float(rows[2][8]) > float(rows[2][6])  # a training step takes more memory
    assert torch.is_grad_enabled()
