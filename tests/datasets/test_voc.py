"""Pascal VOC's XML: edges of boxes, what is dropped, what is refused, and the way back."""

import numpy as np
import pytest
from made_data import voc_xml

from pera_mm.datasets.voc import annotation_xml, read_annotation, read_texts


def test_edges_of_boxes_count_from_the_corner_of_the_image(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', 1, 1, 2, 1), ('ship', 3, 4, 20, 10),
                        ('vehicle', '5.0', 2, 6, 9, '<difficult>1</difficult>')))
    found = read_annotation(str(file))
    assert (found.width, found.height, found.num_dropped) == (20, 10, 1)  # 2 x 1: no area inside
    np.testing.assert_array_equal(found.boxes, [[2, 3, 20, 10], [4, 1, 6, 9]])
    assert found.names == ('ship', 'vehicle') and found.difficult == (False, True)


def test_what_sticks_out_is_cut_and_what_is_empty_is_dropped(tmp_path):
    file = tmp_path / 'a.xml'
    file.write_text(voc_xml(('ship', 0, -3, 25, 5), ('ship', 9, 2, 4, 5), ('ship', 4, 5, 9, 5),
                        ('ship', 21, 1, 30, 5)))
    found = read_annotation(str(file))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 20, 5]])
    assert found.num_dropped == 3


@pytest.mark.parametrize(('text', 'reason'), [
    ('<annotation>', r'^it is not XML \(no element found'),
    ('<?xml version="1.0" encoding="klingon"?><annotation/>', r'^it is not XML \('),
    (voc_xml().replace('width', 'breadth'), '^<annotation> lacks <size/width>$'),
    (voc_xml(('ship', 1, 1, 5, 5)).replace('ymin', 'y'), '^<object> lacks <bndbox/ymin>$'),
    (voc_xml(('ship', 1, 1, 5, 5)).replace('name', 'label'), '^<object> lacks <name>$'),
    (voc_xml(('ship', 'x', 1, 5, 5)), "^could not convert string to float: 'x'$"),
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
    assert (found.width, found.height, found.num_dropped) == (20, 10, 0)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 2, 2], [2, 3, 20, 10]])
    assert found.names == ('ship', 'windmill') and found.difficult == (False, False)
