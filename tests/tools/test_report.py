"""The report: curves and verdict are those of the run, and every method has a picture."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from pera_mm.evaluation.attention import cls_attention
from pera_mm.evaluation.painting import reconstruct
from pera_mm.registry import MODELS
from pera_mm.weights.backbone import NormalizedViT

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))  # tools/ is no package

from analysis.report import (  # noqa: E402
    draw_report,
    last_attention,
    load_run,
    main,
    pick_images,
    read_scalars,
    verdict_on,
)


def write_scalars(work_dir: Path, start: str, *records: dict) -> None:
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (folder / 'scalars.json').write_text('\n'.join(lines) + '\n')


def losses(value: float, step: int) -> dict:
    return dict(loss_cls=value, loss_pixel=2 * value, loss_koleo=-value, epoch=1, iter=step,
                step=step)


def test_scalars_of_a_resumed_run_replace_what_it_repeated(tmp_path):
    probe = 'probe/knn'
    write_scalars(tmp_path, '20250101_000000', {probe: 30., 'step': 0}, losses(9., 10),
                  losses(8., 20), losses(7., 30), {probe: 40., 'step': 1})
    write_scalars(tmp_path, '20250102_000000', losses(6., 20), losses(5., 40),
                  {probe: 50., 'step': 2})
    curves = read_scalars(tmp_path)
    assert curves['loss_cls'] == ([10, 20, 40], [9., 6., 5.])
    assert curves[probe] == ([0, 1, 2], [30., 40., 50.])


def test_no_scalars_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match='give the work folder of a run'):
        read_scalars(tmp_path)


def count_colors(path: Path) -> int:
    return len(np.unique(cv2.imread(str(path)).reshape(-1, 3), axis=0))


def test_draws_a_picture_with_and_without_a_predictor(tmp_path, tiny_cfg, model, images):
    probes = [{'probe/knn': 30., 'probe/linear': 40., 'step': 0},
              {'probe/knn': 50., 'probe/linear': 60., 'step': 1}]
    write_scalars(tmp_path, '20250101_000000', losses(9., 10), losses(8., 20), *probes)
    path = draw_report(tmp_path, model, images)
    assert path == tmp_path / 'report.png'
    assert cv2.imread(str(path)).shape[1] == 1200 and count_colors(path) > 5000
    plain = MODELS.build(dict(tiny_cfg, predictor=None, pixel=None))
    other = draw_report(tmp_path, plain, images[:1], out=tmp_path / 'plain.png')
    assert count_colors(other) > 5000


def test_draws_health_and_the_verdict(tmp_path, model, images):
    """Curves in a row of their own, and the lines of the verdict below everything."""
    signs = [{f'health/{name}': 0.1 * step for name in ('teacher_entropy', 'feature_std',
                                                        'feature_rank', 'alignment')}
             | {'health/uniformity': -0.1 * step, 'step': step} for step in (1, 2, 3)]
    write_scalars(tmp_path, '20250101_000000', losses(9., 10), losses(8., 20), *signs,
                  {'probe/color_share': 0.4, 'step': 0}, {'probe/color_share': 0.3, 'step': 1})
    plain = cv2.imread(str(draw_report(tmp_path, model, images[:1])))
    judged = cv2.imread(str(draw_report(tmp_path, model, images[:1], tmp_path / 'judged.png',
                                        'Verdict: ' + 'too few tokens ' * 20)))
    assert plain.shape == judged.shape and plain.shape[0] == 900
    white, dark = (judged[-40:] > 250).mean(), (judged[-40:] < 128).mean()
    assert white > 0.7 and dark > 0.005  # dark letters on white, where the pictures were
    assert (plain[-40:] > 250).mean() < 0.7


def test_the_verdict_is_that_of_the_scalars_and_the_config(tmp_path):
    write_scalars(tmp_path, '20250101_000000',
                  *({'health/teacher_entropy': value, 'health/feature_std': 0.5, 'step': step}
                    for step, value in enumerate([0.7, 0.8, 0.9995, 0.9995])))
    verdict = verdict_on(tmp_path, Config(dict()))
    assert verdict.startswith('Verdict: collapse to uniform: health/teacher_entropy is 0.99950')


def test_pick_images_spreads_over_the_folder_and_skips_the_broken(tmp_path):
    for index in range(9):
        image = np.full((20, 30, 3), 10 * index, np.uint8)
        assert cv2.imwrite(str(tmp_path / f'{index}.png'), image)
    assert pick_images(str(tmp_path), 3, 16)[:, 0, 0, 0].tolist() == [0, 30, 60]
    (tmp_path / '3.png').write_bytes(b'broken')
    assert pick_images(str(tmp_path), 3, 16).shape == (2, 16, 16, 3)
    assert len(pick_images(str(tmp_path), 100, 16)) == 8
    with pytest.raises(ValueError, match="no readable images in the folder '.*nowhere'"):
        pick_images(str(tmp_path / 'nowhere'), 3, 16)


def test_the_command_reports_a_run_from_its_folder(tmp_path, tiny_cfg, model, images, capsys):
    write_scalars(tmp_path / 'run', '20250101_000000', losses(9., 10), losses(8., 20))
    work_dir, folder = tmp_path / 'run', tmp_path / 'images'
    folder.mkdir()
    for index, image in enumerate(images.numpy()):
        assert cv2.imwrite(str(folder / f'{index}.png'), image)
    with pytest.raises(ValueError, match='needs the config .* and the file last_checkpoint'):
        main([str(work_dir)])
    hook = dict(type='pera_mm.ProbeHook', data_root=str(folder), size=32)
    (work_dir / 'config.py').write_text(f'model = {tiny_cfg!r}\ncustom_hooks = [{hook!r}]\n')
    torch.save(dict(state_dict=model.state_dict(), meta={}), work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text('/moved/since/then/epoch_1.pth')
    main([str(work_dir), '--number', '2'])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == 'Verdict: healthy: no sign of collapse, divergence or a shortcut.'
    assert printed[1].startswith('Not judged: collapse (no HealthHook); color shortcut (no Pro')
    assert printed[2:] == [f'wrote {work_dir / "report.png"}']
    for out, said in (('report.jpeg2', '--out must end with .png, not .*report.jpeg2'),
                      ('config.py/report.png', 'or give another --out')):
        with pytest.raises(ValueError, match=said):
            main([str(work_dir), '--out', str(work_dir / out)])
    assert not capsys.readouterr().out
    (work_dir / 'config.py').write_text(f'model = {tiny_cfg!r}\n')
    with pytest.raises(ValueError, match='no ProbeHook.*give a folder of images with --images'):
        main([str(work_dir)])


MAE = """
model = dict(
    backbone=dict(arch=dict(embed_dims=32, feedforward_channels=64, num_heads=2, num_layers=4),
                  img_size=64, type='mmpretrain.MAEViT'),
    data_preprocessor=dict(type='pera_mm.ViewsPreprocessor', mean=[1, 2.5, 3], std=(4, 5, 6)),
    type='mmpretrain.MAE')
"""


def test_a_run_of_mae_is_drawn_from_its_encoder(tmp_path, model, images, capsys):
    """Its checkpoint has ``backbone`` alone, and its log one loss."""
    folder, work_dir = tmp_path / 'images', tmp_path / 'mae'
    folder.mkdir()
    for index, image in enumerate(images.numpy()):
        assert cv2.imwrite(str(folder / f'{index}.png'), image)
    write_scalars(work_dir, '20250101_000000', dict(loss=0.9, step=10), dict(loss=0.8, step=20))
    (work_dir / 'config.py').write_text(MAE)
    state = {f'backbone.{name}': value
             for name, value in model.teacher.backbone.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(cfg=MAE)), work_dir / 'iter_20.pth')
    (work_dir / 'last_checkpoint').write_text('iter_20.pth')
    main([str(work_dir), '--images', str(folder)])
    assert capsys.readouterr().out.splitlines()[0] == (
        'Verdict: none: the log has no number to judge by.')
    picture = cv2.imread(str(work_dir / 'report.png'))
    assert (picture[:320, :300] < 250).mean() > 0.02  # the curve of the loss
    vit = load_run(work_dir)[1]
    assert isinstance(vit, NormalizedViT)
    expected = cls_attention(vit.vit, (images.movedim(-1, 1) - vit.mean) / vit.std)[0]
    assert torch.equal(last_attention(vit, images), expected)
    assert not torch.equal(last_attention(model, images), expected)  # other mean and std


def test_a_file_of_weights_is_a_sentence(tmp_path):
    (tmp_path / 'pera.params').write_bytes(b'')
    with pytest.raises(ValueError, match='is a file, and the report is of a run.*figures.py'):
        main([str(tmp_path / 'pera.params')])


def test_the_reconstructions_have_the_ratios_of_the_run(tmp_path, model, images, monkeypatch):
    seen = []
    monkeypatch.setattr('analysis.report.reconstruct',
                        lambda *args: seen.append(args[2:]) or reconstruct(*args))
    write_scalars(tmp_path, '20250101_000000', losses(9., 10), losses(8., 20))
    draw_report(tmp_path, model, images[:1])
    (tmp_path / 'config.py').write_text(
        "x = dict(pipeline=[dict(type='pera_mm.DisjointMask', student=0.3, learnable=0.25)])")
    draw_report(tmp_path, model, images[:1])
    assert seen == [(0.2, 0.2), (0.3, 0.25)]
