"""Pascal VOC's XML: edges of boxes, what is dropped, what is refused, and the way back."""

import numpy as np
import pytest
from made_data import voc_xml

from pera_mm.datasets.voc import (
    EMPTY,
    INVERTED,
    NO_SIZE,
    NOT_A_NUMBER,
    OUTSIDE,
    annotation_xml,
    read_annotation,
    read_texts,
)


def test_edges_of_boxes_count_from_the_corner_of_the_image(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', 1, 1, 2, 1), ('ship', 3, 4, 20, 10),
                        ('vehicle', '5.0', 2, 6, 9, '<difficult>1</difficult>')))
    found = read_annotation(str(file))
    assert (found.width, found.height) == (20, 10)
    assert found.dropped == {EMPTY: 1}  # 2 x 1: no area inside
    np.testing.assert_array_equal(found.boxes, [[2, 3, 20, 10], [4, 1, 6, 9]])
    assert found.names == ('ship', 'vehicle') and found.difficult == (False, True)


def test_what_sticks_out_is_cut_and_what_is_empty_is_dropped(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', 0, -3, 25, 5), ('ship', 9, 2, 4, 5), ('ship', 4, 5, 9, 5),
                        ('ship', 21, 1, 30, 5)))
    found = read_annotation(str(file))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 20, 5]])
    assert found.dropped == {INVERTED: 1, EMPTY: 1, OUTSIDE: 1}


def test_nan_and_an_image_without_pixels_are_reasons_of_their_own(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', 1, 'nan', 5, 5), ('ship', 1, 1, 'inf', 5)))
    found = read_annotation(file)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 20, 5]])
    assert found.dropped == {NOT_A_NUMBER: 1}
    file.write_text(voc_xml(('ship', 1, 1, 5, 5), ('ship', 9, 2, 4, 5), size=(0, 0)))
    assert read_annotation(file).dropped == {NO_SIZE: 2}


@pytest.mark.parametrize('declared, written', [
    ('gbk', 'gbk'), ('GB2312', 'gb18030'), ('big5', 'big5'), ('EUC-KR', 'euc-kr'),
    ('Shift_JIS', 'shift_jis'), ('utf8', 'utf-8'), ('UTF-8', 'utf-8-sig'), ('UTF-16', 'utf-16'),
    ('UTF-16', 'utf-8'), (None, 'utf-8'),
])
def test_a_class_is_read_in_the_encoding_that_is_declared_or_that_fits(tmp_path, declared, written):
    letters = '\ud56d\uad6c' if declared == 'EUC-KR' else '\u8239\u6e2f'
    text = voc_xml((letters, 1, 1, 5, 5))
    if declared:
        text = f'<?xml version="1.0" encoding="{declared}"?>\n{text}'
    file = tmp_path / 'a.xml'
    file.write_bytes(text.encode(written))
    assert read_annotation(file).names == (letters, )


@pytest.mark.parametrize('declaration', ['', '<?xml version="1.0" encoding="utf-8"?>'])
def test_of_letters_in_no_known_encoding_only_a_class_is_refused(tmp_path, declaration):
    file = tmp_path / 'a.xml'
    path = '<path>D:\\\u5f71\u50cf\\a.jpg</path><size>'
    text = declaration + voc_xml(('ship', 1, 1, 5, 5)).replace('<size>', path)
    file.write_bytes(text.encode('gbk'))
    found = read_annotation(file)
    assert found.names == ('ship', ) and found.boxes.tolist() == [[0, 0, 5, 5]]
    file.write_bytes(text.replace('ship', '\u8239').encode('gbk'))
    with pytest.raises(ValueError, match=r"^the class '.*' is not UTF-8, and the file declares no"):
        read_annotation(file)


def test_numbers_and_flags_are_read_as_programs_write_them(tmp_path):
    flags = [None, '', '0', 'False', 'no', '0.0', '1', 'True', ' true ', '2']
    boxes = [('ship', 1, 1, 5, 5, '' if flag is None else f'<difficult>{flag}</difficult>')
             for flag in flags]
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(*boxes, size=('20.0', '1e1')))
    found = read_annotation(file)
    assert (found.width, found.height) == (20, 10)
    assert found.difficult == (False, ) * 6 + (True, ) * 4


def test_boxes_in_the_first_pixel_are_no_fractions_where_others_have_pixels(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', .2, .3, 1, .9), ('ship', 3, 2, 9, 5)))
    np.testing.assert_allclose(read_annotation(file).boxes, [[0, 0, 1, .9], [2, 1, 9, 5]])
    file.write_text(voc_xml(('ship', 0, 0, 1, 1)))
    assert read_annotation(file).boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(('text', 'reason'), [
    ('<annotation>', r'^it is not XML \(no element found'),
    ('<?xml version="1.0" encoding="klingon"?><annotation/>', r'^it is not XML \('),
    (voc_xml().replace('width', 'breadth'), '^<annotation> lacks <size/width>$'),
    (voc_xml(('ship', 1, 1, 5, 5)).replace('ymin', 'y'), '^<object> lacks <bndbox/ymin>$'),
    (voc_xml(('ship', 1, 1, 5, 5)).replace('name', 'label'), '^<object> lacks <name>$'),
    (voc_xml(('ship', 'x', 1, 5, 5)), "^could not convert string to float: 'x'$"),
    (voc_xml(size=('wide', 10)), "^<size/width> is 'wide', not a number of pixels$"),
    (voc_xml(size=(20, 10.5)), "^<size/height> is '10.5', not a number of pixels$"),
    (voc_xml(size=(-20, 10)), "^<size/width> is '-20', not a number of pixels$"),
    (voc_xml(size=('inf', 10)), "^<size/width> is 'inf', not a number of pixels$"),
    (voc_xml(('ship', 1, 1, 5, 5, '<difficult>hard</difficult>')),
     "^<difficult> is 'hard', neither 0 nor 1$"),
    (voc_xml(('ship', 0, 0, 1, 1), ('ship', .25, .1, .5, .375)),
     r'^its boxes \(0.25 0.1 0.5 0.375\) look like fractions of the image, as YOLO has them'),
    (voc_xml(('ship', .5, .5, .1, .2)), r'^its boxes \(0.5 0.5 0.1 0.2\) look like fractions'),
])
def test_what_is_not_an_annotation_is_refused_with_the_reason(tmp_path, text, reason):
    file = tmp_path / 'a.xml'
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_annotation(file)


def test_texts_are_read_as_written_and_what_lacks_is_none(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text('<annotation><size><width> wide </width></size><object><bndbox><xmin/></bndbox>'
                    '<difficult>1</difficult></object></annotation>')
    texts = read_texts(file)
    assert texts.size == ('wide', None)
    assert texts.objects == [(None, ('', None, None, None), '1')]


def test_what_is_written_is_read_back_rounded_outwards(tmp_path):
    boxes = np.array([[0, 0, 2, 2], [2.5, 3, 19.2, 9.5]])
    file = tmp_path / 'a.xml'
    file.write_bytes(annotation_xml('a.jpg', 20, 10, boxes, ['ship', 'windmill'], 'drawn scenes'))
    found = read_annotation(file)
    assert (found.width, found.height, found.dropped) == (20, 10, {})
    np.testing.assert_array_equal(found.boxes, [[0, 0, 2, 2], [2, 3, 20, 10]])
    assert found.names == ('ship', 'windmill') and found.difficult == (False, False)
