"""The painting is measured during a real run, and the run does not notice."""

import json

import pytest
import torch
from training_runs import draw_images, train, training_cfg

from pera_mm.evaluation.features import images_below, read_square
from pera_mm.evaluation.painting import paint_hidden, variance_explained


@pytest.fixture
def hook(tmp_path) -> dict:
    return dict(type='pera_mm.PaintingHook', data_root=draw_images(tmp_path / 'shown', 3),
                size=64, interval=1, number=2)


@pytest.fixture
def cfg(tmp_path, tiny_cfg, tiny_pipeline):
    """Makes the config of 2 epochs of 2 iterations whose randomness is PyTorch's own."""
    images = draw_images(tmp_path / 'images', 4)

    def make(name: str, *hooks: dict, **model) -> dict:
        made = training_cfg(tmp_path / name, images, dict(tiny_cfg, **model), tiny_pipeline,
                            interval=100)
        made['train_dataloader']['sampler'] = dict(type='DefaultSampler', shuffle=True)
        made['visualizer'] = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
        made['custom_hooks'] = [*made['custom_hooks'][1:], *hooks]
        return made

    return make


def test_it_measures_start_epochs_and_end_and_changes_no_weight(cfg, hook, tmp_path):
    plain, measured = train(cfg('plain')), train(cfg('measured', hook))
    expected, state = plain.model.state_dict(), measured.model.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], state[key])] == []
    file, = (tmp_path / 'measured').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {line['step']: line['painting/explained'] for line in lines
             if 'painting/explained' in line}
    assert list(found) == [0, 1, 2]
    model = measured.model
    shown = torch.stack([torch.from_numpy(read_square(path, 64))
                         for path in images_below(hook['data_root'])[:2]])
    painting = paint_hidden(model, model.data_preprocessor.normalize(shown))
    assert found[2] == pytest.approx(variance_explained(painting), rel=1e-5)


def test_a_model_that_paints_nothing_is_not_measured(cfg, hook, tmp_path):
    train(cfg('run', hook, predictor=None, pixel=None))
    file, = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    assert 'painting' not in file.read_text()


def test_a_folder_without_images_is_one_sentence_before_the_run(cfg, hook, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match="PaintingHook: no readable image below '.*empty'"):
        train(cfg('run', dict(hook, data_root=str(tmp_path / 'empty'))))
