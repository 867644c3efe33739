"""An approximate index of a table of vectors, for tables that exact search takes too long for.

It is faiss's HNSW graph with the vectors in float16. Its file is mapped into memory and not read as
a whole. A search finds most of the rows that the exact one finds.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pera_mm.embedding.search import Duplicates, Found
from pera_mm.embedding.table import Vectors
from pera_mm.errors import UserError, needs_extra
from pera_mm.files import check_writable

BLOCK = 16_384  # rows at a time
CANDIDATES = 64  # neighbors of a row among which its earlier twins are looked for
LINKS = 32  # of a row in the graph
VISITED = 256  # candidates of a search: more find more, and take longer
COMPARED = 16  # rows of the table whose vectors the index must have
ROUNDING = 2e-3  # of a cosine of vectors in float16
SAME = 0.99  # the least cosine of a vector and its copy in float16

Progress = Callable[[int], None]


class Index:
    """The index of a table.

    Args:
        vectors: the table.
        path: a file that :func:`build` made of it.

    Raises:
        ValueError: if faiss is not installed, or the file is not the index of this table.
    """

    def __init__(self, vectors: Vectors, path: Path) -> None:
        self.vectors = vectors
        faiss = _faiss()
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            graph = None
        if graph is None or not self._is_of_table(graph):
            raise UserError(f'{path} is not an index of {vectors.path}: delete it, and it is built '
                            'anew, or give another name.')
        graph.hnsw.efSearch = VISITED
        self._graph = graph

    def _is_of_table(self, graph: Any) -> bool:
        if (graph.ntotal, graph.d) != (len(self.vectors), self.vectors.width):
            return False
        ids = np.unique(np.linspace(0, graph.ntotal - 1, COMPARED).astype(np.int64))
        ours = self.vectors.vectors_of(ids)
        theirs = torch.from_numpy(np.stack([graph.reconstruct(int(each)) for each in ids]))
        return bool(((ours * theirs).sum(1) >= SAME * ours.norm(dim=1) * theirs.norm(dim=1)).all())

    def nearest(self, query: Tensor, count: int, without: Sequence[int] = ()) -> Found:
        """Find rows as :func:`pera_mm.embedding.search.nearest` does; their cosines are exact."""
        number = min(count + len(without), len(self.vectors))
        _, found = self._graph.search(query.float().numpy()[None], number)
        ids = np.setdiff1d(found[found >= 0], np.asarray(without, np.int64))
        scores = self.vectors.vectors_of(ids) @ (query.float() / query.float().norm())
        best = scores.argsort(descending=True, stable=True)[:count].numpy()
        return Found(ids[best], scores.numpy()[best])

    def duplicates(self, threshold: float, progress: Progress = lambda rows: None) -> Duplicates:
        """Find rows as :func:`pera_mm.embedding.search.duplicates` does; their cosines are exact.

        A row is compared with its 64 nearest neighbors. So it may be kept if more than 64 rows
        are nearer to it than the one that it repeats.
        """
        kept = np.ones(len(self.vectors), bool)
        found: list[tuple[int, int, float]] = []
        number = min(CANDIDATES, len(self.vectors))
        for start, block in self.vectors.blocks(BLOCK):
            cosines, keys = self._graph.search(block.numpy(), number)
            ids = np.arange(start, start + len(block))
            rows, places = np.nonzero((keys >= 0) & (keys < ids[:, None])
                                      & (cosines >= threshold - ROUNDING))
            earlier = keys[rows, places]
            exact = self._cosines(block, rows, earlier)
            for row, pairs in _groups(rows):
                twins = pairs[kept[earlier[pairs]] & (exact[pairs] >= threshold)]
                if len(twins):
                    best = twins[exact[twins].argmax()]
                    kept[ids[row]] = False
                    found.append((ids[row], earlier[best], exact[best]))
            progress(len(block))
        repeated, originals, scores = zip(*found) if found else ((), (), ())
        return Duplicates(np.array(repeated, np.int64), np.array(originals, np.int64),
                          np.array(scores, np.float32))

    def _cosines(self, block: Tensor, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Compute the cosines of rows of a block with rows of the table, ``[n]``."""
        different, places = np.unique(ids, return_inverse=True)
        others = self.vectors.vectors_of(different)
        return (block[torch.from_numpy(rows)] * others[torch.from_numpy(places)]).sum(1).numpy()


def _groups(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over the different numbers of a rising list, each with its places."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for places in np.split(np.arange(len(rows)), starts[1:]):
        if len(places):
            yield int(rows[places[0]]), places


def build(vectors: Vectors, path: Path, progress: Progress = lambda rows: None) -> None:
    """Build the index of a table and write it, whole or not at all.

    Raises:
        ValueError: if faiss is not installed, or the folder cannot be written to.
    """
    faiss = _faiss()
    check_writable(path.parent, 'give another --index')
    graph = faiss.index_factory(vectors.width, f'HNSW{LINKS}_SQfp16', faiss.METRIC_INNER_PRODUCT)
    for _, block in vectors.blocks(BLOCK):
        graph.add(block.numpy())
        progress(len(block))
    part = path.with_name(f'.{path.name}.part')
    try:
        faiss.write_index(graph, str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _faiss() -> Any:
    with needs_extra('index', 'an index'):
        import faiss
    return faiss
