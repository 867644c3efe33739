"""Which files belong together: class folders, and files of one name in several folders."""

import os
from pathlib import Path

import pytest

from pera_mm.datasets.matching import READABLE, Role, class_folders, first_few, match


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def roles(root: Path, image: str | None = None, mask: str | None = None) -> dict[str, Role]:
    return dict(img=Role('image', str(root / 'a'), image), ann=Role('mask', str(root / 'b'), mask))


def found(root: Path, *suffixes: str | None, names: str | None = None) -> list[tuple[str, str]]:
    """The pairs of paths below the root."""
    samples = match(roles(root, *suffixes), names and str(root / names), str(root)).samples
    return [tuple(os.path.relpath(path, root) for path in sample.files.values())
            for sample in samples]


# -- class folders -------------------------------------------------------------------------------


LITTER = ('.ipynb_checkpoints', '.hidden', '@eaDir', '__MACOSX', '$RECYCLE.BIN', 'lost+found',
          '#recycle', '@Recycle', 'System Volume Information')


def test_hidden_and_leftover_folders_are_not_classes(tmp_path, log):
    touch(tmp_path, 'b/1.png', 'a/2.PNG', 'a/deep/1.webp', 'a/._2.png', 'a/@eaDir/2.png',
          'a-c/0.tiff', 'a/notes.txt', *(f'{name}/0.png' for name in LITTER))
    (tmp_path / '.empty').mkdir()
    assert class_folders(str(tmp_path)) == {
        'a': ['a/2.PNG', 'a/deep/1.webp'], 'a-c': ['a-c/0.tiff'], 'b': ['b/1.png']}
    assert log == []


def test_empty_folders_and_images_beside_the_folders_are_said_and_left_out(tmp_path, log):
    touch(tmp_path, 'b/1.png', 'splits/train.txt', 'x.JPG', 'y.txt')
    (tmp_path / 'a').mkdir()
    assert list(class_folders(str(tmp_path))) == ['b']
    assert log == [f'Folders without an image are not classes: a, splits in {tmp_path}.',
                   f'Images beside the folders of the classes are left out: 1 in {tmp_path} '
                   '(x.JPG).']


def test_links_to_class_folders_are_followed(tmp_path):
    touch(tmp_path, 'elsewhere/1.png', 'root/b/1.png')
    (tmp_path / 'root/a').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'root/loop').symlink_to(tmp_path / 'root/loop')
    assert class_folders(str(tmp_path / 'root')) == {'a': ['a/1.png'], 'b': ['b/1.png']}


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(('suffix', 'path', 'name'), [
    (None, 'x.png', 'x'), (None, 'sub/x.v2.TIFF', 'sub/x.v2'), (None, 'x.txt', None),
    ('.png', 'x.PNG', 'x'), ('.PNG', 'x.png', 'x'), ('.png', 'x.tif', None),
    ('_RGB.tif', 'top_1_rgb.TIF', 'top_1'), ('_RGB.tif', 'top_1.tif', None),
    ('_RGB', 'top_1_RGB.png', 'top_1'), ('_RGB', 'top_1_RGB.tif', 'top_1'),
    ('_RGB', 'x.tif', None)])
def test_a_name_is_what_stands_before_the_suffix(suffix, path, name):
    assert Role('image', '', suffix).name_of(path) == name


@pytest.mark.parametrize('suffix', [*READABLE, *(suffix.upper() for suffix in READABLE)])
def test_every_readable_type_has_its_mask_of_another_type(tmp_path, suffix):
    touch(tmp_path, f'a/0{suffix}', 'a/1.png', f'b/1{suffix}', 'b/0.png')
    assert found(tmp_path) == [(f'a/0{suffix}', 'b/0.png'), ('a/1.png', f'b/1{suffix}')]


def test_samples_are_sorted_by_the_path_of_their_image(tmp_path):
    touch(tmp_path, *(f'{folder}/{name}' for folder in 'ab' for name in (
        'x.png', 'x-1.png', 'x1.png', 'X.png', 'x/1.png')))
    assert [image for image, _ in found(tmp_path)] == [
        'a/X.png', 'a/x-1.png', 'a/x.png', 'a/x/1.png', 'a/x1.png']


def test_hidden_and_leftover_files_are_not_samples(tmp_path):
    touch(tmp_path, 'a/0.png', 'b/0.png', 'a/._0.png', 'a/.x.png', 'a/@eaDir/0.png',
          'a/.ipynb_checkpoints/0-checkpoint.png', 'a/0.tfw', 'b/Thumbs.db')
    assert found(tmp_path) == [('a/0.png', 'b/0.png')]


def test_two_files_of_one_name_are_both_named(tmp_path):
    touch(tmp_path, 'a/0.png', 'a/0.TIF', 'b/0.png')
    with pytest.raises(ValueError, match=r'0.TIF and 0.png in \S+/a have one name, so either may '
                                         'be the image of 0: remove one, or set the suffix'):
        found(tmp_path)
    assert found(tmp_path, '.tif') == [('a/0.TIF', 'b/0.png')]


def test_a_suffix_tells_images_from_masks_in_one_folder_and_what_it_leaves_out_is_said(
        tmp_path, log):
    touch(tmp_path, 'x_RGB.tif', 'x_label.tif', 'y_RGB.TIF', 'y_label.tif')
    both = dict(img=Role('image', str(tmp_path), '_RGB.tif'),
                ann=Role('mask', str(tmp_path), '_label.tif'))
    assert [sample.name for sample in match(both).samples] == ['x', 'y'] and log == []
    touch(tmp_path, 'x_IRRG.tif')
    assert len(match(dict(img=both['img'])).samples) == 2
    assert log == [f'Files in {tmp_path} that do not end in _RGB.tif are left out: 3 (x_IRRG.tif, '
                   'x_label.tif, y_label.tif).']


def test_what_samples_lack_is_counted_and_named(tmp_path):
    touch(tmp_path, *(f'a/{i}.png' for i in range(9)), 'b/0.png', 'b/1.png', 'b/x.png')
    (tmp_path / 'a/1.png').unlink()
    (tmp_path / 'a/1.png').symlink_to('nowhere')
    matched = match(roles(tmp_path))
    assert [sample.name for sample in matched.samples] == ['0']
    assert matched.faults == [
        f'1 of 10 samples have no image in {tmp_path}/a: x',
        f'7 of 10 samples have no mask in {tmp_path}/b: 2, 3, 4, 5, 6, and 2 more',
        f'1 of 12 files are broken links: {tmp_path}/a/1.png']


def test_a_list_chooses_and_orders_samples_by_any_name_of_theirs(tmp_path):
    touch(tmp_path, 'a/0.png', 'a/1.JPG', 'a/2.v1.png', 'a/s/3.png', 'a/4.png', 'a/5.png',
          *(f'b/{name}.png' for name in ('0', '1', '2.v1', 's/3', '4', '5')))
    (tmp_path / 'list.txt').write_text(
        f'5\n1.JPG\n2.v1\ns\\3.png\na/0.png\n{tmp_path}/a/4.png\n', encoding='utf-16')
    assert [image for image, _ in found(tmp_path, names='list.txt')] == [
        'a/5.png', 'a/1.JPG', 'a/2.v1.png', 'a/s/3.png', 'a/0.png', 'a/4.png']
    assert match(roles(tmp_path), str(tmp_path / 'list.txt'), str(tmp_path)).faults == []


@pytest.mark.parametrize(('line', 'said'), [
    (b'7', "line 2 ('7' is not there)"),
    (b'0  1', "line 2 ('0  1' is not there, while '0' is: write one name per line)"),
    (b'0,0', "line 2 ('0,0' is not there, while '0' is: write one name per line)"),
    (b'gr\xfcn', r"line 2 ('gr\xfcn' is not there and not UTF-8: save the list as UTF-8)")])
def test_a_line_without_a_sample_is_named(tmp_path, line, said):
    touch(tmp_path, 'a/0.png', 'b/0.png')
    (tmp_path / 'list.txt').write_bytes(b'0\n' + line)
    assert match(roles(tmp_path), str(tmp_path / 'list.txt')).faults == [
        f'1 of 2 lines of {tmp_path}/list.txt name no image in {tmp_path}/a, such as {said}']


def test_names_that_are_not_utf_8_match_and_can_be_printed(tmp_path):
    touch(tmp_path, 'a/x.png', 'b/x.png')
    for folder, name in (('a', b'\xe9.png'), ('b', b'\xe9.tif'), ('a', b'\xff.png')):
        Path(os.fsdecode(os.fsencode(tmp_path / folder) + b'/' + name)).touch()
    matched = match(roles(tmp_path))
    assert [os.fsencode(sample.name) for sample in matched.samples] == [b'x', b'\xe9']
    assert matched.faults == [rf'1 of 3 samples have no mask in {tmp_path}/b: \xff']
    assert first_few(['\udcff'] * 7) == r'\xff, \xff, \xff, \xff, \xff, and 2 more'
