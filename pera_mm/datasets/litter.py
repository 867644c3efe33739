"""What programs leave beside the files of a data set: never images of it, wherever they lie."""

# Folders of macOS, of Synology's thumbnails, of the recycle bins of network disks and Windows, and
# of file systems.
FOLDERS = (b'__macosx', b'@eadir', b'#recycle', b'@recycle', b'$recycle.bin', b'lost+found',
           b'system volume information')


def is_litter(name: bytes) -> bool:
    """Tell whether a file or folder of this name is hidden or was left by a program.

    macOS writes ``._`` files, Jupyter ``.ipynb_checkpoints``.

    Args:
        name: One part of a path, without slashes.
    """
    return name.startswith(b'.') or name.lower() in FOLDERS
