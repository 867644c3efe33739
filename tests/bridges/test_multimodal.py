"""MMPretrain imports beside a transformers that its multimodal models are too old for."""

import importlib
import subprocess
import sys
from importlib.metadata import version

import pytest

from pera_mm.bridges import multimodal as multimodal_bridge

pytest.importorskip('transformers')


@pytest.mark.parametrize('tried, fails', [
    ('4.28.0', False), ('4.51.3', False), ('4.52.4', True), ('4.57.1', True), ('5.23.0', True)])
def test_the_versions_tried(tried, fails):
    assert multimodal_bridge.breaks(tried) is fails


needed = pytest.mark.skipif(not multimodal_bridge.breaks(version('transformers')),
                            reason='MMPretrain works with this transformers')


@needed
def test_a_multimodal_model_asks_for_what_it_needs_when_it_is_built():
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import dependency
    assert dependency.WITH_MULTIMODAL is False
    with pytest.raises(ImportError, match='CLIP|multi-modal'):
        MODELS.build(dict(type='mmpretrain.CLIP'))


@pytest.mark.slow
@needed
def test_mmpretrain_may_be_imported_first():
    lines = ['import mmpretrain', 'import pera_mm', 'import mmpretrain.models',
             'import mmpretrain.datasets', 'print(mmpretrain.models.MAE.__name__)']
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', '; '.join(lines)],
                         capture_output=True, text=True)
    assert run.stdout == 'MAE\n', run.stderr


def test_activating_twice_changes_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, multimodal_bridge.DEPENDENCY, raising=False)
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    multimodal_bridge.activate()
    multimodal_bridge.activate()
    assert sys.meta_path.count(multimodal_bridge.MultimodalBridge) == 1
    spec = importlib.util.find_spec(multimodal_bridge.DEPENDENCY)
    assert isinstance(spec.loader, multimodal_bridge.MultimodalBridge)
    assert multimodal_bridge.MultimodalBridge.find_spec('mmpretrain.models') is None
