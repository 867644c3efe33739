"""Labelled folders, stratified splits, and the teacher's features of image files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pera_mm.evaluation.features import extract_features, read_labelled_folder, stratified_split


def draw(path: Path, seed: int = 0, shape: tuple[int, int] = (48, 80)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return str(path)


def test_reads_class_folders_in_a_stable_order(tmp_path):
    (tmp_path / 'a_readme.txt').write_text('no class')
    (tmp_path / 'empty').mkdir()
    for name in ('.hidden', '@eaDir', '__MACOSX', 'lost+found'):
        draw(tmp_path / name / 'x.png')
    wanted = [draw(tmp_path / 'b.v2' / '1.PNG'), draw(tmp_path / 'b.v2' / 'deep' / '0.jpg'),
              draw(tmp_path / 'forest' / '0.tif')]
    (tmp_path / 'forest' / 'notes.txt').write_text('no image')
    folder = read_labelled_folder(str(tmp_path))
    assert folder.classes == ['b.v2', 'forest']
    assert folder.paths == wanted
    assert folder.labels.tolist() == [0, 0, 1]


def test_a_missing_folder_and_one_class_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="labelled folder '.*nowhere' does not exist; it must"):
        read_labelled_folder(str(tmp_path / 'nowhere'))
    draw(tmp_path / 'forest' / '0.png')
    with pytest.raises(ValueError, match='at least two folders with images.*found 1'):
        read_labelled_folder(str(tmp_path))


def test_split_is_stratified_disjoint_complete_and_seeded():
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 2)
    split = stratified_split(labels, train_share=0.7, seed=3)
    assert labels[split.train].bincount().tolist() == [7, 3, 1]
    assert sorted(split.train.tolist() + split.test.tolist()) == list(range(16))
    again, other = (stratified_split(labels, 0.7, seed=seed) for seed in (3, 4))
    assert torch.equal(split.train, again.train)
    assert not torch.equal(split.train, other.train)


def test_split_leaves_both_sides_an_image_and_can_be_capped():
    labels = torch.tensor([0] * 50 + [1] * 2)
    split = stratified_split(labels, train_share=0.01, max_per_class=6)
    assert labels[split.train].bincount().tolist() == [1, 1]
    assert labels[split.test].bincount().tolist() == [5, 1]
    assert stratified_split(labels, 0.5, 6).test.max() > 5  # drawn, not the first six


def test_split_refuses_what_cannot_be_split():
    with pytest.raises(ValueError, match='class number 1 has 1 image'):
        stratified_split(torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match='train_share must lie between 0 and 1, got 1'):
        stratified_split(torch.tensor([0, 0, 1, 1]), train_share=1)


def test_features_are_the_teachers_of_the_resized_image(tmp_path, model):
    path = draw(tmp_path / '0.png')
    rgb = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    small = cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA)
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    image = ((torch.from_numpy(small).float() - mean) / std).permute(2, 0, 1).unsqueeze(0)
    expected = model.teacher.backbone(image)[-1]
    features, readable = extract_features(model, [path], size=32)
    assert readable.tolist() == [True]
    torch.testing.assert_close(features, expected)


def test_batches_do_not_matter_and_unreadable_files_are_marked(tmp_path, model):
    paths = [draw(tmp_path / f'{i}.png', i, shape=(20 + 15 * i, 40)) for i in range(5)]
    Path(paths[1]).write_bytes(b'broken')
    whole, readable = extract_features(model, paths, size=32)
    parts, again = extract_features(model, paths, size=32, batch_size=2)
    torch.testing.assert_close(whole, parts)
    assert readable.tolist() == again.tolist() == [True, False, True, True, True]
    assert whole.shape == (5, 32) and not whole.requires_grad


def test_extraction_leaves_no_trace(tmp_path, model):
    path = draw(tmp_path / '0.png')
    model.train()
    modes = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    extract_features(model, [path], size=64)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(p.grad is None for p in model.parameters())
