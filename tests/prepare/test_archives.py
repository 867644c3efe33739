import io
import tarfile
import zipfile

import pytest
from official_archives import pack, picture, snapshot, unpack

from pera_mm.errors import UserError
from pera_mm.prepare.archives import BadFile, Entry, list_source, pick
from pera_mm.prepare.jobs import copy, run_jobs

FILES = {'Images/beach/beach00.tif': b'one', 'Images/river/river00.tif': b'two'}


def paths(source):
    return [entry.path for entry in source.entries]


def quiet(sequence, description, total):
    return sequence


def test_zips_tars_and_folders_show_the_same_files(tmp_path):
    unpack(tmp_path / 'folder/deep', FILES)
    pack(tmp_path / 'zip/deep/ucm.ZIP', FILES)
    (tmp_path / 'tar').mkdir()
    with tarfile.open(tmp_path / 'tar/ucm.tar', 'w') as archive:
        archive.add(tmp_path / 'folder/deep/Images', 'Images')
    for kind, at in (('folder', 'deep'), ('zip', 'deep/ucm.ZIP'), ('tar', 'ucm.tar')):
        source = list_source(tmp_path / kind)
        assert paths(source) == [f'{at}/{name}' for name in FILES]
        assert [entry.read() for entry in source.entries] == list(FILES.values())
        assert [entry.size for entry in source.entries] == [3, 3]
    assert paths(list_source(tmp_path / 'zip/deep/ucm.ZIP')) == [f'ucm.ZIP/{n}' for n in FILES]


def test_hidden_files_and_those_of_macos_are_left_out(tmp_path):
    unpack(tmp_path, {'.DS_Store': b'', '__MACOSX/a.tif': b'', 'real.tif': b''})
    pack(tmp_path / 'x.zip', {'__MACOSX/a/._b.tif': b'', 'a/._b.tif': b'', 'a/b.tif': b'',
                              '__MACOSX/._c.zip': b''})
    source = list_source(tmp_path)
    assert paths(source) == ['real.tif', 'x.zip/a/b.tif']
    assert source.unopened == []


def test_folders_that_programs_leave_are_left_out(tmp_path):
    litter = {f'a/{name}/b.tif': b'' for name in (
        '@eaDir', '.ipynb_checkpoints', '#recycle', '$RECYCLE.BIN', '.Trash-1000')}
    unpack(tmp_path / 'folder', litter | {'a/b.tif': b''})
    pack(tmp_path / 'x.zip', litter | {'./a/b.tif': b''})
    assert paths(list_source(tmp_path)) == ['folder/a/b.tif', 'x.zip/./a/b.tif']


@pytest.mark.parametrize(('pieces', 'join'), [
    (['test.zip.001', 'test.zip.002'], 'cat test.zip.* > test.zip'),
    (['test.zip', 'test.z01', 'test.z02'], 'zip -s 0 test.zip --out whole.zip'),
    (['test.tar.gzaa', 'test.tar.gzab'], 'cat test.tar.gz?* > test.tar.gz'),
    (['x.tar.part1', 'x.tar.part2'], 'cat x.tar.part* > x.tar'),
    (['x.7z.001'], 'cat x.7z.* > x.7z')])
def test_a_split_archive_is_to_be_joined_first(tmp_path, pieces, join):
    for name in pieces:
        (tmp_path / name).write_bytes(b'PK')
    with pytest.raises(UserError) as failure:
        list_source(tmp_path)
    assert f'pieces of an archive that was split: join them (in their folder: {join})' in str(
        failure.value)


@pytest.mark.parametrize('name', ['a.tar.gz', 'a.rar', 'a.part1.rar', 'a.tar.xz', 'a.tgz',
                                  'z01.jpg', 'a.zip.jpg', 'a.tar.md5', 'tar.ab'])
def test_other_names_are_not_pieces(tmp_path, name):
    (tmp_path / name).write_bytes(b'')
    list_source(tmp_path)


@pytest.mark.parametrize('mark', [' (copy)', ' (another copy)', ' (3rd copy)', ' (copy 2)',
                                  ' - Copy', ' - Copy (2)', ' copy', ' copy 2'])
def test_a_copy_beside_its_file_is_taken_once_or_named(tmp_path, mark):
    def names():
        return list(pick(list_source(tmp_path).entries, r'([^/]+\.jpg)$', lambda match: match[1]))

    unpack(tmp_path, {'a/b.jpg': b'one', f'a/b{mark}.jpg': b'one', f'a/c{mark}.jpg': b'two',
                      'copy.jpg': b'', 'd (1).jpg': b'', 'd.jpg': b'other'})
    assert sorted(names()) == sorted(['b.jpg', f'c{mark}.jpg', 'copy.jpg', 'd (1).jpg', 'd.jpg'])
    unpack(tmp_path, {f'a/b{mark}.jpg': b'two'})
    with pytest.raises(UserError) as failure:
        names()
    assert str(failure.value) == (f'a/b{mark}.jpg has the name of a copy of a/b.jpg, but differs '
                                  'from it: remove the wrong one of the two.')


def test_separators_of_windows_are_separators(tmp_path):
    info = zipfile.ZipInfo('x')
    info.filename = 'Images\\beach\\beach00.tif'  # past the cleaning of the constructor
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        archive.writestr(info, b'one')
    entry, = list_source(tmp_path).entries
    assert (entry.path, entry.read()) == ('x.zip/Images/beach/beach00.tif', b'one')


def test_a_suffix_in_capitals_becomes_what_the_configs_look_for(tmp_path):
    unpack(tmp_path, {'A_1.TIF': b'one'})
    assert list(pick(list_source(tmp_path).entries, r'(\w+\.tif)$',
                     lambda match: f'X.Y/{match[1]}')) == ['X.Y/A_1.tif']


def test_a_folder_that_links_back_to_itself_ends(tmp_path):
    unpack(tmp_path, FILES)
    (tmp_path / 'Images/loop').symlink_to(tmp_path)
    assert paths(list_source(tmp_path)) == list(FILES)


@pytest.mark.parametrize('name', ['../evil.tif', 'a/../../evil.tif', '/etc/evil.tif',
                                  'C:/evil.tif', 'a\\..\\..\\evil.tif'])
def test_a_member_that_leads_out_is_refused(tmp_path, name):
    info = zipfile.ZipInfo('x')
    info.filename = name  # past the cleaning of the constructor
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        archive.writestr(info, b'')
    with pytest.raises(ValueError, match=r'x.zip holds .*evil.tif.* leads out of the archive'):
        list_source(tmp_path)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_a_tar_is_refused(tmp_path, kind):
    info = tarfile.TarInfo('beach/beach00.tif')
    info.type, info.linkname = kind, '/etc/passwd'
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        archive.addfile(info)
    with pytest.raises(ValueError, match='x.tar holds .beach/beach00.tif., a link'):
        list_source(tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo('beach/beach00.tif')
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        archive.writestr(info, '/etc/passwd')
    with pytest.raises(ValueError, match='a link'):
        list_source(tmp_path)


def test_all_truncated_archives_are_named_at_once(tmp_path):
    whole = pack(tmp_path / 'whole.zip', {'a.jpg': picture(64)}).read_bytes()
    (tmp_path / 'whole.zip').unlink()
    (tmp_path / 'half.zip').write_bytes(whole[:-30])
    (tmp_path / 'empty.tar').write_bytes(b'')
    name = bytearray(pack(tmp_path / 'name.zip', {'é.jpg': b''}).read_bytes())
    name[name.rindex('é'.encode())] = ord('x')  # what follows is not UTF-8
    (tmp_path / 'name.zip').write_bytes(name)
    with pytest.raises(ValueError) as failure:
        list_source(tmp_path)
    for name in ('half.zip is not a whole zip', 'empty.tar is not a whole tar',
                 'name.zip is not a whole zip'):
        assert name in str(failure.value)


def test_a_damaged_member_and_a_password_are_sentences(tmp_path):
    path = pack(tmp_path / 'x.zip', {'a.jpg': b'A' * 100, 'b.jpg': b'B' * 100})
    data = bytearray(path.read_bytes())
    data[data.index(b'A' * 100) + 50] ^= 255
    path.write_bytes(data)
    broken, whole = list_source(tmp_path).entries
    assert whole.read() == b'B' * 100
    with pytest.raises(BadFile, match='cannot be read .Bad CRC-32'):
        broken.read()
    for flags in (b'PK\x01\x02', b'PK\x03\x04'):  # set "encrypted" in both headers
        at = data.index(flags) + (8 if flags == b'PK\x01\x02' else 6)
        data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(BadFile, match='encrypted'):
        list_source(tmp_path).entries[0].read()


def test_a_tar_that_ends_early_is_named(tmp_path):
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        info = tarfile.TarInfo('a.jpg')
        info.size = 100_000
        archive.addfile(info, io.BytesIO(bytes(100_000)))
    data = (tmp_path / 'x.tar').read_bytes()
    (tmp_path / 'x.tar').write_bytes(data[:50_000])
    try:
        entry, = list_source(tmp_path).entries
    except ValueError as error:
        assert 'x.tar is not a whole tar file' in str(error)
    else:
        with pytest.raises(BadFile, match='cannot be read'):
            entry.read()


def test_rar_and_nested_archives_are_told_apart_from_files(tmp_path):
    unpack(tmp_path, {'a.rar': b'', 'b.7z': b'', 'c.TAR.GZ': b''})
    pack(tmp_path / 'Potsdam.zip', {'2_Ortho_RGB.zip': b'', 'readme.txt': b''})
    source = list_source(tmp_path)
    assert source.unopened == ['Potsdam.zip/2_Ortho_RGB.zip', 'a.rar', 'b.7z', 'c.TAR.GZ']
    assert paths(source) == ['Potsdam.zip/readme.txt']


def test_a_missing_source_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match='nowhere is neither a folder nor an archive'):
        list_source(tmp_path / 'nowhere')


def test_the_same_file_twice_is_taken_once_and_different_ones_are_refused(tmp_path):
    unpack(tmp_path, FILES)
    pack(tmp_path / 'ucm.zip', FILES)
    entries = list_source(tmp_path).entries

    def choose():
        return pick(entries, r'/(\w+\.tif)$', lambda match: match[1])

    assert {name: entry.path for name, entry in choose().items()} == {
        'beach00.tif': 'Images/beach/beach00.tif', 'river00.tif': 'Images/river/river00.tif'}
    pack(tmp_path / 'ucm.zip', FILES | {'Images/river/river00.tif': b'TWO'})
    entries = list_source(tmp_path).entries
    with pytest.raises(ValueError, match='river00.tif and ucm.zip/Images/river/river00.tif differ'):
        choose()


def test_a_kill_leaves_no_half_file_and_the_rest_is_kept(tmp_path):
    pack(tmp_path / 'source/ucm.zip', FILES)
    entries = list_source(tmp_path / 'source').entries
    outputs = [tmp_path / 'out' / name for name in FILES]
    jobs = [copy(entry, output) for entry, output in zip(entries, outputs)]
    assert run_jobs(jobs, 2, quiet) == {}
    outputs[0].unlink()  # killed while it was written
    outputs[0].with_name('.beach00.tif.part').write_bytes(b'o')
    time = outputs[1].stat().st_mtime_ns
    assert run_jobs(jobs, 2, quiet) == {}
    assert [output.read_bytes() for output in outputs] == [b'one', b'two']
    assert outputs[1].stat().st_mtime_ns == time
    assert len(snapshot(tmp_path / 'out')) == 2


def test_another_file_of_that_name_is_not_overwritten(tmp_path):
    unpack(tmp_path / 'source', {'a.tif': b'new one'})
    unpack(tmp_path / 'out', {'a.tif': b'old'})
    entry, = list_source(tmp_path / 'source').entries
    failed = run_jobs([copy(entry, tmp_path / 'out/a.tif')], 1, quiet)
    assert 'differs in size from the existing' in failed['a.tif']
    assert (tmp_path / 'out/a.tif').read_bytes() == b'old'


def test_names_and_sizes_that_make_no_sense_are_named(tmp_path):
    """A member without a name, and one with 2**63 bytes according to its PAX header."""
    nameless = bytearray(pack(tmp_path / 'nameless.zip', {'x': b''}).read_bytes())
    for signature, at in ((b'PK\1\2', 28), (b'PK\3\4', 26)):
        place = nameless.index(signature) + at
        nameless[place:place + 4] = (0).to_bytes(2, 'little') + (1).to_bytes(2, 'little')
    (tmp_path / 'nameless.zip').write_bytes(nameless)
    header = tarfile.TarInfo('x')
    header.type, header.size = tarfile.XHDTYPE, 2**63
    (tmp_path / 'large.tar').write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError) as failure:
        list_source(tmp_path)
    for name in ('nameless.zip is not a whole zip', 'large.tar is not a whole tar'):
        assert name in str(failure.value)


@pytest.mark.parametrize(('name', 'fault'), [
    ('x' * 4000, 'is too long'), ('x\0y', 'holds a zero byte'), ('x\udcff', 'is not UTF-8')])
def test_a_name_that_no_file_can_have_is_refused(name, fault):
    entry = Entry(f'folder/{name}.jpg', 1, bytes)
    with pytest.raises(UserError, match=f'{fault}: rename the file') as error:
        pick([entry], r'(.*)[.]jpg$', lambda match: f'{match[1]}.jpg')
    assert str(error.value).isprintable() and len(str(error.value)) < 300
