"""Lists as other programs write them: encodings, columns, headers; a sentence for the rest."""

import os
from pathlib import Path

import pytest

from pera_mm.datasets.text_lists import Line, read_labels, read_lines, read_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of two classes."""
    for name in ('field/0.png', 'town/a b, c.png', 'town/1.tif'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def labels(folder: Path, text: str | bytes, classes=None) -> list[tuple[str, int]]:
    """What is read from a list with this text: paths below the folder, and labels."""
    file = folder / 'list.txt'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(os.path.relpath(path, folder), label)
            for path, label, _ in read_labels(str(file), str(folder), classes)]


# -- lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_encodings_line_ends_and_blank_lines(tmp_path, encoding, end):
    file = tmp_path / 'list.txt'
    file.write_bytes(end.join(['größe 1', '', ' \t', 'b', '']).encode(encoding))
    assert read_lines(str(file)) == [Line(1, 'größe 1'), Line(4, 'b')]


def test_utf_16_of_the_other_order_and_names_that_are_not_utf_8(tmp_path):
    file = tmp_path / 'list.txt'
    file.write_bytes('\ufeffa\nb'.encode('utf-16-be'))
    assert [line.text for line in read_lines(str(file))] == ['a', 'b']
    file.write_bytes(b'caf\xe9\n')
    assert os.fsencode(read_lines(str(file))[0].text) == b'caf\xe9'


@pytest.mark.parametrize(('data', 'message'), [
    (b'\n \n', r'list.txt is empty: write the name of an image on every line\.'),
    (b'a\0b\n', 'list.txt is not a text list: it has zero bytes; save it as UTF-8'),
    (None, r'list.txt cannot be read \(No such file or directory\): give a text file'),
])
def test_what_is_not_a_list_is_named(tmp_path, data, message):
    file = tmp_path / 'list.txt'
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_lines(str(file))


# -- names ---------------------------------------------------------------------------------------


def test_names_are_found_as_they_stand_then_without_quotes_then_by_their_path(tmp_path):
    file = tmp_path / 'list.txt'
    file.write_text('# train\na \n"b"\nsub\\c\n x.png\nd \n#e\nq 1\n')
    known = {'a', 'b', 'sub/c', 'x', 'd ', '#e'}
    found = read_names(str(file), known, lambda path: [path.removesuffix('.png')])
    assert found.known == ['a', 'b', 'sub/c', 'x', 'd ', '#e']
    assert found.unknown == [Line(8, 'q 1')]
    file.write_text('# nothing\n')
    with pytest.raises(ValueError, match='is empty'):
        read_names(str(file), known, lambda path: [])


# -- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize('line', [
    'field/0.png 0', 'field/0.png  0  ', 'field/0.png\t0', 'field/0.png,0', 'field/0.png, 0',
    'field/0.png;0', '"field/0.png" 0', "'field/0.png','0'", 'field\\0.png 0', './field/0.png 0',
    'field/0.png 0.0', 'field/0.png +0', 'field/0.png 00', '\ufefffield/0.png 0\r\n',
    '\nfield/0.png 0\n\n', 'path label\nfield/0.png 0', 'filename,class\nfield/0.png,0',
    '# path label\nfield/0.png 0', '#field/1.png 1\nfield/0.png 0'])
def test_a_path_and_a_number_are_read_however_they_are_written(folder, line):
    assert labels(folder, line) == [('field/0.png', 0)]
    assert labels(folder, line.lstrip('\ufeff').encode('utf-16')) == [('field/0.png', 0)]


@pytest.mark.parametrize('line', [
    'town/a b, c.png 1', 'town/a b, c.png\t1', '"town/a b, c.png",1', 'town/a b, c.png, 1'])
def test_paths_may_hold_blanks_and_commas(folder, line):
    assert labels(folder, line) == [('town/a b, c.png', 1)]


@pytest.mark.parametrize('label', [
    ' storage tank', ',storage tank', '\tstorage tank', ' "storage tank"', ", 'storage tank'", ' 1',
    ' 2', ' old, dry', ';lake', ' lake'])
def test_names_of_known_classes_may_take_the_place_of_numbers(folder, label):
    classes = ('field', 'storage tank', 'lake', 'old, dry')
    index = dict({name: id for id, name in enumerate(classes)}, **{'1': 1, '2': 2})
    assert labels(folder, f'town/1.tif{label}', classes) == [
        ('town/1.tif', index[label.strip(' ,;\t"\'')])]


def test_a_file_need_not_exist_and_lines_keep_their_order(folder):
    found = labels(folder, 'town/1.tif 1\nfield/gone.png 0\nfield/0.png 0\nfield/0.png 0\n')
    assert found == [('town/1.tif', 1), ('field/gone.png', 0), *[('field/0.png', 0)] * 2]


@pytest.mark.parametrize(('text', 'classes', 'message'), [
    ('field/0.png', None, r"list.txt: line 1 \('field/0.png'\) has no label; a line has the path"),
    ('town/a b, c.png', None, r"line 1 \('town/a b, c.png'\) has no label;"),
    ('field/0.png 0\n\nfield/0.png -1\n', None, "line 3 has the label '-1', which is not a class "
     r'from 0 on \(the names of the classes are not set\);'),
    ('field/0.png 0.5', None, "the label '0.5', which"),
    ('field/0.png field\ntown/1.tif town', None, "line 1 has the label 'field', which is not a "
     r'class from 0 on \(the names of the classes are not set\) \(lines with a fault: 2\); .*the '
     r'name of a class in metainfo=dict\(classes=\(\.\.\.\)\)\.'),
    ('field/0.png lake', ('field', 'town'), "'lake', which .*the classes are field, town"),
    ('field/0.png 2', ('field', 'town'), 'line 1 has the label 2, and there are 2 classes'),
    ('field/0.png 1', ('1', '0'), "the label '1', which"),  # the first or the second?
    ('field/0.png 0 1', None, r"line 1 \('field/0.png 0 1'\) has more than a path and a label"),
    ('field/0.png 0\n./field/0.png 1\n', None, 'line 2 gives .*field/0.png the label 1, line 1 the '
     'label 0;'),
    ('path label\n', None, 'is empty'),
])
def test_a_line_that_cannot_be_understood_is_named(folder, text, classes, message):
    with pytest.raises(ValueError, match=message) as error:
        labels(folder, text, classes)
    assert '\n' not in str(error.value)
